"""Keys get new values later in the text: is the latest answered, an old one, or something else.

Prints a table; writes overwrite.jsonl, overwrite.csv and overwrite.png to --out.
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
from neuralmem.evaluation.overwrite import Overwrite

EXAMPLES = """example
  python eval.py overwrite --checkpoint runs/quickstart --updates 0,1,4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "overwrite", samples=32)
    add_layout_options(parser, spread=16)
    parser.add_argument("--updates", default="0,1,2,4", metavar="LIST", help="new values of every key (0,1,2,4)")
    parser.add_argument("--facts", type=int, default=8, metavar="N", help="keys (8)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "gap", "facts", zero=["spread"])
    parse_counts(options.updates, "--updates", least=0)


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""
    updates = parse_counts(options.updates, "--updates", least=0)
    carry_out(
        options,
        "overwrite",
        lambda opened: Overwrite(updates, options.facts, gap_of(options, opened), options.spread),
    )
