"""One HTML file of an evaluation: tables, intervals, controls, pictures, settings, and where the numbers come from.

Every evaluation writes one when it ends; this makes it again from the folder alone, also of a run that was stopped.
"""

import argparse
from pathlib import Path

from neuralmem.errors import UserError
from neuralmem.evaluation.cli import docstrings
from neuralmem.evaluation.html_report import write_report

EXAMPLES = """examples
  python eval.py report --out runs/quickstart/niah
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """One: the folder."""
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder with results, as an evaluation wrote it")


def check(options: argparse.Namespace) -> None:
    """Nothing is wrong before the folder has been looked at."""


def run(options: argparse.Namespace) -> None:
    """Write report.html.

    Raises:
        UserError: there is no such folder, or it holds no results.
    """
    if not Path(options.out).is_dir():
        raise UserError(f"--out is {options.out!r}, which is no folder")
    print(write_report(Path(options.out), docstrings()))
