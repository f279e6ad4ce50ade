"""Questions about facts scattered in a long text, answered by putting up to three of them together (BABILong's form).

Prints a table; writes babi.jsonl (a line per prompt and control), babi.csv and a picture per task to --out.

tasks
  qa1   where a person is                         one fact
  qa2   where a thing is                          two facts
  qa3   where a thing was before it was elsewhere three facts
  qa4   what lies in a direction of a place       one fact, often the other way round
  qa5   who gave what to whom                     one fact
"""

import argparse
from functools import partial
from itertools import cycle
from pathlib import Path

from neuralmem.evaluation.asking import IDENTITY, ask_missing
from neuralmem.evaluation.babi import SHOTS, Line, new_tokens, samples, score, score_again, summarise, tokenise
from neuralmem.evaluation.babi_worlds import TASKS
from neuralmem.evaluation.bookmark import UNFINISHED, Bookmark
from neuralmem.evaluation.commands.repeated_words import chosen_ablations
from neuralmem.evaluation.curves import Curve, Curves, write_curves
from neuralmem.evaluation.haystack import NAMES, open_haystack
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.lengths import parse_lengths, split_list
from neuralmem.evaluation.niah import readings
from neuralmem.evaluation.opened import Opened, add_common_options, check_positive, one_of, open_checkpoint
from neuralmem.evaluation.reader import ABLATIONS, Reader
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.tables import print_lines, reach_note, with_ends, write_csv

EXAMPLES = """examples
  python eval.py babi --checkpoint runs/quickstart --tasks qa1,qa2 --lengths 0,4k,16k
  python eval.py babi --checkpoint runs/mac_170m --lengths 0,1k,4k,16k,64k,1m --samples 1000 --haystack file:pg19.txt
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_common_options(parser, "babi")
    add = parser.add_argument
    add("--tasks", default=",".join(TASKS), metavar="LIST", help=f"of {','.join(TASKS)} (all)")
    add("--lengths", default="0,2k", metavar="LIST", help="of the context in tokens, 0 is the facts alone (0,2k)")
    add("--samples", type=int, default=50, metavar="N", help="per task and length; published: 1000 (50)")
    add("--shots", type=int, default=SHOTS, metavar="N", help=f"examples in front of the text ({SHOTS})")
    add("--haystack", default="", metavar="NAME", help=f"{', '.join(NAMES)} (as trained on)")
    add("--ablate", metavar="LIST", help=f"controls, of {','.join(ABLATIONS)} (all where there is a memory)")
    add("--max-new-tokens", type=int, metavar="N", help="length of the answer (16, or what the longest label needs)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    _tasks(options.tasks)
    check_positive(options, "samples", "stream_chunk", "batch_size", "max_new_tokens", "threads")
    if options.shots:
        check_positive(options, "shots")


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    training = read_training_data(options.checkpoint)
    lengths = _lengths(options.lengths, training.length)
    opened = open_checkpoint(options, "babi", training)
    ablations = chosen_ablations(options.ablate, opened, ABLATIONS if options.samples > 1 else ABLATIONS[:-1])
    name, encode = options.haystack or training.haystack, opened.tokenizer.encode
    builders = {}
    for length in lengths:  # each from a text of its own size, so that no length changes the prompts of another
        haystack = open_haystack(name, 6 * length, options.seed, training.share)
        text = tokenise(haystack, encode, max(2 * length, 1 << 16))
        build = partial(samples, haystack=text, haystack_id=haystack.id, seed=options.seed, shots=options.shots)
        builders[length] = partial(build, length=length, count=options.samples)
    cells = [builders[length](task) for task in _tasks(options.tasks) for length in lengths]
    journal, rows = Journal(opened.out / "babi.jsonl", IDENTITY), []
    with progress_bar() as (plan, advance):
        plan(sum(len(s.rope) for cell in cells for s in cell) * readings(ablations))
        segment, bookmark = opened.model.config.attention.segment, Bookmark(opened.out / UNFINISHED)
        reader = Reader(opened.model, opened.tokenizer, opened.stream_chunk, advance, segment, bookmark)
        for cell in cells:
            tokens = options.max_new_tokens or new_tokens(cell)
            own = ask_missing(cell, ablations, reader, opened.subject, journal, score, tokens, options.batch_size)
            for row, sample in zip(own, cycle(cell), strict=False):  # all samples for each control in turn
                journal.confirm(row, partial(score_again, sample, row, opened.subject))
            rows += own
        bookmark.clear()
    lines = summarise(rows)
    notes = [
        f"{haystack.id}, {options.shots} examples; BABILong's score of the greedy answer. Worlds are our own.",
        reach_note(opened.model.reach) + " Beyond it: all facts that the answer needs lie farther back.",
        "Null model: the most frequent answer, named every time. Likeliest label: among those not in the question.",
    ]
    print_lines(f"facts in a long text: {opened.folder}", [_shown(line) for line in lines], notes)
    pictures = [_draw([x for x in lines if x.task == task], opened, haystack.id) for task in _tasks(options.tasks)]
    for path in (journal.path, write_csv(opened.out / "babi.csv", [_flat(x) for x in lines]), *pictures):
        print(path)


def _tasks(text: str) -> list[str]:
    return [one_of(name, list(TASKS), "--tasks") for name in split_list(text, "--tasks")]


def _lengths(text: str, train_length: int | None) -> list[int]:
    parts = split_list(text, "--lengths")
    rest = [part for part in parts if part != "0"]
    return [0] * (len(rest) < len(parts)) + (parse_lengths(",".join(rest), train_length) if rest else [])


def _shown(line: Line) -> dict[str, object]:
    return {
        "task": line.task,
        "context": line.length or "facts",
        "prompt": round(line.tokens),
        "control": "memory on" if line.ablation == "none" else line.ablation,
        "accuracy": line.accuracy,
        "null": f"{100 * line.null:.0f}%",
        "beyond reach": line.beyond if line.beyond.n else "none",
        "likeliest label": line.likeliest,
        "chance": f"{100 * line.chance:.0f}%",
    }


def _flat(line: Line) -> dict[str, object]:
    out: dict[str, object] = {"task": line.task, "length": line.length, "ablation": line.ablation}
    out |= {"n": line.accuracy.n, "prompt_tokens": line.tokens, "n_beyond": line.beyond.n}
    for name in ("accuracy", "beyond", "likeliest"):
        out |= with_ends(name, getattr(line, name))
    return out | {"null": line.null, "chance": line.chance}


def _draw(lines: list[Line], opened: Opened, haystack: str) -> Path:
    curves = []
    for name in dict.fromkeys(line.ablation for line in lines):
        own = [line for line in lines if line.ablation == name]
        curves.append(Curve("memory on" if name == "none" else name, [(x.length, *x.accuracy[2:]) for x in own]))
    own = [line for line in lines if line.ablation == "none"]
    curves.append(Curve("likeliest label", [(x.length, *x.likeliest[2:]) for x in own]))
    curves.append(Curve("null model", [(x.length, x.null, None, None) for x in own], "--", marks=False))
    about = f"{opened.folder.name}  ·  {haystack}  ·  n = {own[0].accuracy.n} per length  ·  95% intervals"
    axes, note = ("tokens of the context, 0: the facts alone", "share of questions"), reach_note(opened.model.reach)
    figure = Curves(f"facts in a long text: {own[0].task}", *axes, curves, note=note)
    return write_curves(figure, opened.out / f"babi_{own[0].task}.png", about)
