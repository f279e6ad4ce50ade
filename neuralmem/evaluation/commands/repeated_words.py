"""Repeated words: copy a text of one word many times over, one copy of which is another word (context rot).

Prints a table; writes repeated-words.jsonl (a line per prompt and control), repeated-words.csv and a picture to --out.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

from neuralmem.errors import UserError
from neuralmem.evaluation.asking import IDENTITY, ask_missing
from neuralmem.evaluation.curves import Curve, Curves, write_curves
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.lengths import split_list
from neuralmem.evaluation.niah import readings
from neuralmem.evaluation.opened import Opened, add_common_options, check_positive, one_of, open_checkpoint
from neuralmem.evaluation.reader import ABLATIONS, Reader
from neuralmem.evaluation.repeated_words import Line, find_pair, new_tokens, samples, score, score_again, summarise
from neuralmem.evaluation.screen import progress_bar
from neuralmem.evaluation.tables import interval, print_lines, reach_note, with_ends, write_csv

EXAMPLES = """examples
  python eval.py repeated-words --checkpoint runs/quickstart --words 25,50,100
  python eval.py repeated-words --checkpoint runs/mac_170m --words 25,100,1000,10000 --samples 101 --pairs apple/apples
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_common_options(parser, "repeated-words")
    add = parser.add_argument
    add("--words", default="25,50,100", metavar="LIST", help="in a text; published: 25 to 10000 (25,50,100)")
    add("--pairs", default="apple/apples", metavar="LIST", help="common word and odd word (apple/apples)")
    add("--samples", type=int, default=10, metavar="N", help="places of the odd word, spread evenly (10; 101 is all)")
    add("--ablate", metavar="LIST", help="controls, of none,frozen,off,reset,shuffled (frozen where there is a memory)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right.

    Raises:
        UserError: naming the option and what it must be.
    """
    _counts(options.words)
    _pairs(options.pairs)
    check_positive(options, "samples", "stream_chunk", "batch_size", "threads")


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files.

    Raises:
        UserError: an option that cannot be used, a checkpoint that cannot be loaded.
    """
    opened = open_checkpoint(options, "repeated-words")
    ablations = chosen_ablations(options.ablate, opened, ("none", "frozen"))
    encode = opened.tokenizer.encode
    cells = [
        samples(pair, count, options.samples, encode, options.seed)
        for count in _counts(options.words)
        for pair in _pairs(options.pairs)
    ]
    journal, rows = Journal(opened.out / "repeated-words.jsonl", IDENTITY), []
    with progress_bar() as (plan, advance):
        plan(sum(len(s.rope) for cell in cells for s in cell) * readings(ablations))
        reader = Reader(
            opened.model, opened.tokenizer, opened.stream_chunk, advance, opened.model.config.attention.segment
        )
        for cell in cells:
            scored = partial(score, reach=opened.model.reach)
            own = ask_missing(
                cell, ablations, reader, opened.subject, journal, scored, new_tokens(cell), options.batch_size
            )
            for row, sample in zip(own, cycle(cell), strict=False):  # all samples for each control in turn
                journal.confirm(row, partial(score_again, sample, row, opened.subject))
            rows += own
    lines = summarise(rows, options.seed)
    notes = [
        f"{options.pairs}: {options.samples} places of the odd word at most; answers of up to twice the text's tokens.",
        reach_note(opened.model.reach),
        "Null model: the common word as often as asked, which never saw the odd word. Its last three scores are 0.",
    ]
    print_lines(f"repeated words: {opened.folder}", [_shown(line) for line in lines], notes)
    picture = _draw(lines, opened, opened.out / "repeated-words.png")
    for path in (journal.path, write_csv(opened.out / "repeated-words.csv", [_flat(x) for x in lines]), picture):
        print(path)


def chosen_ablations(given: str | None, opened: Opened, default: Sequence[str]) -> list[str]:
    """ "none" and the controls asked for; without a wish the default where there is a memory.

    Raises:
        UserError: a control that does not exist.
    """
    if given is None:
        return list(default) if opened.model.has_memory else ["none"]
    named = [one_of(name, ABLATIONS, "--ablate") for name in split_list(given, "--ablate")]
    return list(dict.fromkeys(["none", *named]))


def _counts(text: str) -> list[int]:
    for part in (parts := split_list(text, "--words")):
        if not part.isdecimal() or int(part) < 2:
            raise UserError(f"--words holds {part!r}; it must be a number of at least 2, as in 25,100,1000")
    return sorted({int(part) for part in parts})


def _pairs(text: str) -> list[tuple[str, str]]:
    return [find_pair(part) for part in split_list(text, "--pairs")]


def _shown(line: Line) -> dict[str, object]:
    return {
        "words": line.words,
        "control": "memory on" if line.ablation == "none" else line.ablation,
        "tokens": round(line.tokens),
        "beyond reach": f"{100 * line.beyond:.0f}%",
        "similarity [95%]": interval(*line.similarity[:3]),
        "null": line.null,
        "odd word there": line.present,
        "in its place": line.in_place,
        "exact": line.exact,
        "words too many": f"{line.delta:+,.1f}",
    }


def _flat(line: Line) -> dict[str, object]:
    out: dict[str, object] = {"words": line.words, "ablation": line.ablation, "n": line.similarity.n}
    out |= {"tokens": line.tokens, "beyond_reach": line.beyond, **with_ends("similarity", line.similarity)}
    out |= {"null": line.null, **with_ends("exact", line.exact), **with_ends("odd_present", line.present)}
    return out | with_ends("odd_in_place", line.in_place) | {"word_delta": line.delta}


def _draw(lines: list[Line], opened: Opened, path: Path) -> Path:
    curves = []
    for name in dict.fromkeys(line.ablation for line in lines):
        own = [line for line in lines if line.ablation == name]
        curves.append(Curve("memory on" if name == "none" else name, [(x.words, *x.in_place[2:]) for x in own]))
    own = [line for line in lines if line.ablation == "none"]
    curves.append(Curve("similarity", [(x.words, *x.similarity[:3]) for x in own]))
    null = [(x.words, x.null, None, None) for x in own]
    curves.append(Curve("similarity, null", null, "--", marks=False))
    note = (
        "Share of texts with the odd word in its place, and similarity with the memory on and of the common word alone."
    )
    figure = Curves("repeated words", "words in the text", "odd word in its place", curves, note=note)
    return write_curves(figure, path, f"{opened.folder.name}  ·  n = {own[0].similarity.n} per count  ·  95% intervals")
