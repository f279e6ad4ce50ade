"""What the commands over streams have in common: options, and asking, printing and writing."""

import argparse
import sys
from collections.abc import Callable, Sequence

from neuralmem.errors import UserError
from neuralmem.evaluation.bookmark import UNFINISHED, Bookmark
from neuralmem.evaluation.curves import write_curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.haystack import NAMES
from neuralmem.evaluation.lengths import split_list
from neuralmem.evaluation.listener import Listener
from neuralmem.evaluation.opened import Opened, add_common_options, check_positive, one_of, open_checkpoint
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.streams import CONTROLS, USUAL, Measure, Sampling
from neuralmem.evaluation.streams import run as run_measure
from neuralmem.evaluation.tables import print_lines, reach_note, write_csv


def add_stream_options(parser: argparse.ArgumentParser, command: str, samples: int) -> None:
    """The options of every command over streams; `samples` is the default."""
    add_common_options(parser, command)
    add = parser.add_argument
    add("--samples", type=int, default=samples, metavar="N", help=f"texts per setting ({samples})")
    add("--ablate", metavar="LIST", help="controls, of none,frozen,off,reset,shuffled (all but the last)")
    add("--haystack", metavar="NAME", help=f"{', '.join(NAMES)} (as trained on)")


def add_layout_options(parser: argparse.ArgumentParser, spread: int) -> None:
    """The options of facts in text; `spread` is the default."""
    parser.add_argument(
        "--gap", type=int, metavar="N", help="tokens of text before questions (one more than the reach)"
    )
    parser.add_argument("--spread", type=int, default=spread, metavar="N", help=f"tokens of text per fact ({spread})")


def check_streams(options: argparse.Namespace, *counts: str, zero: Sequence[str] = ()) -> None:
    """Refuse counts below 1, or below 0 for those named in `zero`.

    Raises:
        UserError: naming the option.
    """
    check_positive(options, "samples", "stream_chunk", "batch_size", "threads", *counts)
    for name in zero:
        if (value := getattr(options, name)) < 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 0")


def parse_counts(text: str, option: str, least: int = 1) -> tuple[int, ...]:
    """Numbers in ascending order, once each.

    Raises:
        UserError: something else.

    Example:
        >>> parse_counts("8,4,8", "--facts")
        (4, 8)
    """
    for part in split_list(text, option):
        if not part.isdecimal() or int(part) < least:
            raise UserError(f"{option} holds {part!r}; it must be numbers of at least {least}, as in 4,8,16")
    return tuple(sorted({int(part) for part in split_list(text, option)}))


def gap_of(options: argparse.Namespace, opened: Opened) -> int:
    """Tokens that keep questions beyond the reach; with full attention, which sees everything, a training row."""
    if options.gap is not None:
        return options.gap
    reach = opened.model.reach
    return reach + 1 if reach < sys.maxsize else opened.training.length or 256


def carry_out(options: argparse.Namespace, command: str, choose: Callable[[Opened], Measure]) -> None:
    """Open the checkpoint, ask, print the table, write the files.

    Args:
        options: with those of `add_stream_options`
        command: names the files
        choose: what to measure on that checkpoint

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    opened = open_checkpoint(options, command)
    model, measure = opened.model, choose(opened)
    given = options.ablate or ("none," + ",".join(USUAL) if model.has_memory else "none")
    ablations = [one_of(name, ("none", *CONTROLS), "--ablate") for name in split_list(given, "--ablate")]
    sampling = Sampling(options.samples, tuple(dict.fromkeys(["none", *ablations])), options.seed, options.batch_size)
    facts = Facts(opened.training, opened.tokenizer, options.haystack, options.seed)
    with progress_bar() as (plan, advance):
        segment, bookmark = model.config.attention.segment, Bookmark(opened.out / UNFINISHED)
        listener = Listener(model, opened.tokenizer, opened.stream_chunk, advance, segment, bookmark)
        rows = run_measure(measure, facts, listener, opened.subject, opened.out, sampling, plan)
        bookmark.clear()
    lines, notes = measure.lines(rows), measure.notes(rows)
    notes += [
        reach_note(model.reach) + " Null model: questions that they could answer.",
        "Controls are counted beyond reach: frozen writes nothing, off silences the memory, reset empties the state, "
        "shuffled asks the state after another text.",
    ]
    print_lines(f"{command}: {opened.folder}", lines, notes)
    name = command.replace("-", "_")
    table = write_csv(opened.out / f"{name}.csv", lines)
    picture = write_curves(measure.curves(rows), opened.out / f"{name}.png", opened.folder.name)
    for path in (opened.out / f"{name}.jsonl", table, picture):
        print(path)
