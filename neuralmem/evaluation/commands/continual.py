"""Tasks come one after the other in one text: what is known of each after each of them.

Prints a table; writes continual.jsonl, continual.csv and continual.png to --out.
"""

import argparse

from neuralmem.evaluation.commands._streams import (
    add_layout_options,
    add_stream_options,
    carry_out,
    check_streams,
    gap_of,
)
from neuralmem.evaluation.continual import Continual

EXAMPLES = """example
  python eval.py continual --checkpoint runs/quickstart --tasks 5 --classes 10
  python eval.py continual --checkpoint runs/mac_170m --intents --tasks 5 --classes 30 --shown 5
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "continual", samples=16)
    add_layout_options(parser, spread=0)
    parser.add_argument("--tasks", type=int, default=5, metavar="N", help="one after the other (5)")
    parser.add_argument("--classes", type=int, default=8, metavar="N", help="of a task (8)")
    parser.add_argument(
        "--intents",
        action="store_true",
        help="classes are intents with labels, asked in other words than told; else keys with values, word for word",
    )
    parser.add_argument("--shown", type=int, default=3, metavar="N", help="how often each is told (3)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "gap", "tasks", "classes", "shown", zero=["spread"])


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""
    carry_out(
        options,
        "continual",
        lambda opened: Continual(
            options.tasks, options.classes, options.shown, gap_of(options, opened), options.spread, options.intents
        ),
    )
