"""How long a fact lasts: it is told once, and asked for at every power of two of tokens read since.

Prints a table; writes half_life.jsonl, half_life.csv and half_life.png to --out.
"""

import argparse

from neuralmem.evaluation.commands._streams import add_stream_options, carry_out, check_streams
from neuralmem.evaluation.half_life import Forgetting
from neuralmem.evaluation.lengths import parse_lengths
from neuralmem.evaluation.opened import Opened

EXAMPLES = """example
  python eval.py half-life --checkpoint runs/quickstart --longest 64k --samples 16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "half-life", samples=64)
    add = parser.add_argument
    add("--longest", default="4k", metavar="N", help="tokens since the fact, at most: 4k, 1m, 16x (4k)")
    add("--shortest", type=int, default=32, metavar="N", help="tokens since the fact, at least (32)")
    add("--facts", type=int, default=1, metavar="N", help="told next to each other (1)")
    add("--spread", type=int, default=16, metavar="N", help="tokens of text per fact (16)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "shortest", "facts", zero=["spread"])
    parse_lengths(options.longest, 1, "--longest")


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""

    def choose(opened: Opened) -> Forgetting:
        longest = parse_lengths(options.longest, opened.training.length, "--longest")[-1]
        return Forgetting(longest, options.shortest, options.facts, options.spread)

    carry_out(options, "half-life", choose)
