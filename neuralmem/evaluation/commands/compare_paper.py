"""Own needle scores beside published ones: same task and length, with every reason why they cannot be compared.

Reads what eval.py niah wrote and runs nothing. Prints a table per task and length; writes compare_paper.csv,
compare_paper.jsonl and compare_paper.png to the same folder. Cells that were not read in the paper itself are marked.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from neuralmem import durable
from neuralmem.errors import UserError
from neuralmem.evaluation.compare_paper import compare, draw, print_comparisons, table_rows, to_csv
from neuralmem.evaluation.rows import read
from neuralmem.evaluation.table import NARROW

EXAMPLES = """example
  python eval.py compare-paper --out runs/mac_170m/niah
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options, with their meanings."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder of results, as eval.py niah wrote it")
    add("--debug", action="store_true", help="show where an error comes from")


def check(options: argparse.Namespace) -> None:
    """Refuse a folder without rows.

    Raises:
        UserError: naming the option.
    """
    if not (Path(options.out) / "rows.jsonl").is_file():
        raise UserError(f"--out is {options.out!r}, which has no rows.jsonl; it must be a folder of eval.py niah")


def run(options: argparse.Namespace) -> None:
    """Print the tables, write the files.

    Raises:
        UserError: rows that cannot be read, or of several checkpoints.
    """
    out = Path(options.out)
    comparisons = compare(list(read(out / "rows.jsonl")))
    print_comparisons(comparisons, Console(width=None if sys.stdout.isatty() else NARROW))
    rows = [row for comparison in comparisons for row in table_rows(comparison)]
    durable.write_file(out / "compare_paper.csv", to_csv(comparisons))
    durable.write_file(out / "compare_paper.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    partial = out / "compare_paper.png.partial"
    draw(comparisons, out.resolve().parent.name).savefig(partial, dpi=160, format="png")
    os.replace(partial, out / "compare_paper.png")
    for name in ("compare_paper.csv", "compare_paper.jsonl", "compare_paper.png"):
        print(out / name)
