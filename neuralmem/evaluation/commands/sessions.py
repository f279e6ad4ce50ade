"""Facts are told in sessions between which the windows are emptied: what does the memory alone carry over.

Prints a table; writes sessions.jsonl, sessions.csv and sessions.png to --out.
"""

import argparse

from neuralmem.evaluation.commands._streams import add_stream_options, carry_out, check_streams
from neuralmem.evaluation.sessions import Sessions

EXAMPLES = """example
  python eval.py sessions --checkpoint runs/quickstart --sessions 16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every command, with their defaults and meanings."""
    add_stream_options(parser, "sessions", samples=32)
    add = parser.add_argument
    add("--sessions", type=int, default=8, metavar="N", help="in which facts are told (8)")
    add("--facts", type=int, default=4, metavar="N", help="told in each (4)")
    add("--spread", type=int, default=16, metavar="N", help="tokens of text per fact (16)")
    add("--tail", type=int, default=64, metavar="N", help="tokens of text at the end of a session (64)")


def check(options: argparse.Namespace) -> None:
    """Refuse values that no checkpoint could make right."""
    check_streams(options, "sessions", "facts", "spread", zero=["tail"])


def run(options: argparse.Namespace) -> None:
    """Ask, print the table, write the files."""
    measure = Sessions(options.sessions, options.facts, options.spread, options.tail)
    carry_out(options, "sessions", lambda opened: measure)
