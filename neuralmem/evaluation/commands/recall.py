"""Many facts in a text, all of them asked for: how many a memory holds, and how far back.

Prints a table; writes recall.jsonl, recall.csv and recall.png to --out. Multi-query associative recall in text: facts
as in training, then text that attention cannot see over, then a question for every fact with its answer. (`niah` with
the task `recall` asks for one fact per text.)
"""

import argparse

from neuralmem.evaluation.commands._streams import (
    add_layout_options,
    add_stream_options,
    carry_out,
    check_streams,
    gap_of,
    parse_counts,
)
from neuralmem.evaluation.mqar import ManyQuestions

EXAMPLES = """example
  python eval.py recall --checkpoint runs/quickstart --facts 4,16,64
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "recall", samples=32)
    add_layout_options(parser, spread=16)
    parser.add_argument("--facts", default="4,8,16,32", metavar="LIST", help="facts per text (4,8,16,32)")
    parser.add_argument("--questions", type=int, metavar="N", help="asked per text (one per fact)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "gap", "questions", zero=["spread"])
    parse_counts(options.facts, "--facts")


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""
    facts = parse_counts(options.facts, "--facts")
    carry_out(
        options,
        "recall",
        lambda opened: ManyQuestions(facts, gap_of(options, opened), options.spread, options.questions),
    )
