"""Random pairs are read once and all asked for: how many bits a state gives back.

Prints a table; writes capacity.jsonl, capacity.csv and capacity.png to --out.
"""

import argparse

from neuralmem.evaluation.capacity import Capacity
from neuralmem.evaluation.commands._streams import (
    add_layout_options,
    add_stream_options,
    carry_out,
    check_streams,
    gap_of,
    parse_counts,
)
from neuralmem.evaluation.opened import Opened

EXAMPLES = """example
  python eval.py capacity --checkpoint runs/quickstart --pairs 16,64,256,512
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "capacity", samples=8)
    add_layout_options(parser, spread=0)
    parser.add_argument("--pairs", default="8,16,32,64,128,256", metavar="LIST", help="read once (8,16,...,256)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "gap", zero=["spread"])
    parse_counts(options.pairs, "--pairs")


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""

    def choose(opened: Opened) -> Capacity:
        numbers = sum(x.numel() for _, x in opened.model.init_state(1).items() if x.is_floating_point())
        return Capacity(
            parse_counts(options.pairs, "--pairs"), gap_of(options, opened), options.spread, parameters=numbers
        )

    carry_out(options, "capacity", choose)
