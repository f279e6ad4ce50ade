"""A block of random tokens, text, and the block again: is it predicted better the second time.

Prints a table; writes copy.jsonl, copy.csv and copy.png to --out. Needs no training on a task.
"""

import argparse

from neuralmem.evaluation.commands._streams import add_stream_options, carry_out, check_streams
from neuralmem.evaluation.copy import Copy
from neuralmem.evaluation.lengths import parse_lengths
from neuralmem.evaluation.opened import Opened

EXAMPLES = """example
  python eval.py copy --checkpoint runs/quickstart --gaps 64,1k,16k
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "copy", samples=32)
    parser.add_argument("--gaps", default="16,64,256,1k", metavar="LIST", help="tokens in between (16,64,256,1k)")
    parser.add_argument("--block", type=int, default=32, metavar="N", help="tokens of the block (32)")
    parser.add_argument("--cue", type=int, default=4, metavar="N", help="its first tokens, which are given (4)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "block", "cue")
    parse_lengths(options.gaps, 1, "--gaps")
    Copy(block=options.block, cue=options.cue)


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""

    def choose(opened: Opened) -> Copy:
        return Copy(tuple(parse_lengths(options.gaps, opened.training.length, "--gaps")), options.block, options.cue)

    carry_out(options, "copy", choose)
