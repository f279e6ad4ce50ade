"""Memories side by side: what is in the weights, in windows and in kept text, on the same questions.

Asks RUN by itself, then through baselines that keep text, then other checkpoints; prints a table with bytes and
milliseconds; writes rows.jsonl, baselines.csv and baselines.png (accuracy against bytes) to --out.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from neuralmem.errors import UserError
from neuralmem.evaluation.asked import NeedleRun, Respondent, write_runs
from neuralmem.evaluation.baseline import add_baseline_options, choose, names, open_baseline
from neuralmem.evaluation.bookmark import UNFINISHED, Bookmark
from neuralmem.evaluation.commands import niah
from neuralmem.evaluation.comparison import Contender, by_ablation, compare, print_comparison, to_rows
from neuralmem.evaluation.comparison_figure import write_figure
from neuralmem.evaluation.lengths import parse_lengths, split_list
from neuralmem.evaluation.measured_reach import measured_reach
from neuralmem.evaluation.niah import Settings, cells, depth_of, new_tokens
from neuralmem.evaluation.niah import run as run_needles
from neuralmem.evaluation.opened import Opened, add_common_options, open_checkpoint
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.tables import write_csv
from neuralmem.evaluation.text_memory import TextReader

LISTED = "\n".join(f"  {name:11}{text}" for name, text in names().items())
EXAMPLES = f"""baselines
{LISTED}

examples
  python eval.py baselines --checkpoint runs/quickstart --against runs/quickstart_baseline,runs/quickstart_linear
  python eval.py baselines --checkpoint runs/quickstart --baselines bm25,key-value --capacities 256,1k,4k --budget 128
"""
TEXT = "window,recency,bm25,key-value"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_common_options(parser, "baselines")
    niah.add_question_options(parser)
    add = parser.add_argument
    add("--baselines", default=TEXT, metavar="LIST", help=f"of {', '.join(names())} ({TEXT})")
    add("--against", metavar="LIST", help="folders of other checkpoints with the same tokenizer")
    add("--capacities", metavar="LIST", help="ask key-value once for each of these capacities, in place of --capacity")
    add_baseline_options(parser)


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    niah.check(options)


def run(options: argparse.Namespace) -> None:
    """Ask all of them, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    training = read_training_data(options.checkpoint)
    settings = niah.make_settings(options, training)
    opened = open_checkpoint(options, "baselines", training)
    if options.ablate is None and opened.model.has_memory:
        settings = replace(settings, ablations=("none", "off"))
    others = open_others(options, opened)
    out, contenders = opened.out, list[Contender]()
    niah.refuse_other_answers(out, settings)
    measured = measured_reach(opened.model)
    with progress_bar() as (plan, advance):
        planned = 0

        def begin(tokens: int) -> None:
            nonlocal planned
            planned += tokens
            write_runs(out, this, measured)
            plan(planned)

        # All are made before the first is asked, so that a choice that cannot be used costs no time.
        bookmark = Bookmark(out / UNFINISHED)
        asked = list(entrants(options, settings, opened, others, advance, bookmark))
        refuse_long_questions(asked, settings, opened, training)
        everyone = tuple(Respondent(one.name, one.series, one.subject, one.settings.ablations) for one in asked)
        this = NeedleRun(settings, everyone, "baselines.csv")
        for entrant in asked:
            rows = run_needles(entrant.settings, entrant.reader, entrant.subject, out, training, begin)
            contenders += by_ablation(entrant.name, entrant.series, rows)
        bookmark.clear()
    outcomes = compare(contenders)
    chosen = choose(options, opened.subject.reach)
    about = f"budget {chosen.budget:,} tokens, passages of {chosen.passage}"
    print_comparison(outcomes, f"{opened.folder}, {about}", opened.subject.reach)
    table = write_csv(out / "baselines.csv", to_rows(outcomes))
    figure = write_figure(outcomes, out / "baselines.png", f"{opened.folder.name}: {about}")
    for path in [out / "rows.jsonl", table, figure]:
        print(path)


def refuse_long_questions(
    asked: Sequence["Entrant"], settings: Settings, opened: Opened, training: TrainingData
) -> None:
    """Refuse a budget that has no room for the first question of a task and its answer, at the shortest length.

    Raises:
        UserError: naming the budget and what it must be.
    """
    for cell, build in cells(replace(settings, lengths=(min(settings.lengths),)), opened.tokenizer, training):
        sample = build(0, depth_of(settings, 0), cell.random(0))
        for entrant in asked:
            if isinstance(entrant.reader, TextReader):
                entrant.reader.room(sample, new_tokens(settings, [sample]))


@dataclass(frozen=True)
class Entrant:
    """Who is asked, and what; see `Contender` for `series`."""

    name: str
    series: str
    reader: Reader
    subject: Subject
    settings: Settings


def entrants(
    options: argparse.Namespace,
    settings: Settings,
    opened: Opened,
    others: Sequence[Opened],
    advance: Callable[[int], None],
    bookmark: Bookmark,
) -> Iterator[Entrant]:
    """The checkpoint under all its ablations, then with every baseline, then the others as they are.

    Raises:
        UserError: a baseline that does not exist or cannot be asked with the checkpoint.
    """
    plain = replace(settings, ablations=("none",))
    own = make_reader(opened, advance, bookmark)
    yield Entrant(opened.folder.name, opened.folder.name, own, opened.subject, settings)
    sizes = parse_lengths(options.capacities, option="--capacities") if options.capacities else [options.capacity]
    for name in split_list(options.baselines, "--baselines"):
        for capacity in sizes if name == "key-value" else sizes[:1]:
            given = argparse.Namespace(**vars(options) | {"capacity": capacity})
            reader, label = open_baseline(name, own, choose(given, opened.subject.reach))
            title = f"{name} {capacity}" if name == "key-value" else name
            yield Entrant(title, name, reader, replace(opened.subject, baseline=label), plain)
    for other in others:
        yield Entrant(other.folder.name, other.folder.name, make_reader(other, advance, bookmark), other.subject, plain)


def make_reader(opened: Opened, advance: Callable[[int], None], bookmark: Bookmark) -> Reader:
    """The reader of a checkpoint."""
    segment = opened.model.config.attention.segment
    return Reader(opened.model, opened.tokenizer, opened.stream_chunk, advance, segment, bookmark)


def open_others(options: argparse.Namespace, opened: Opened) -> list[Opened]:
    """The checkpoints of --against.

    Raises:
        UserError: one that cannot be loaded, or has another tokenizer, with which the questions would be others.
    """
    found = []
    for folder in split_list(options.against, "--against") if options.against else ():
        other = open_checkpoint(argparse.Namespace(**vars(options) | {"checkpoint": folder}), "baselines")
        if other.tokenizer != opened.tokenizer:
            raise UserError(f"--against holds {folder!r}, which has another tokenizer than {str(opened.folder)!r}")
        found.append(other)
    return found
