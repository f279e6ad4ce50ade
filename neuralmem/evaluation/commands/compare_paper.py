"""Own needle scores beside published ones: same task and length, with every reason why they cannot be compared.

Reads what eval.py niah wrote and runs nothing. Prints a table per task and length; writes compare_paper.csv,
compare_paper.jsonl and compare_paper.png to the folder compare_paper in it. Cells from a third party's text are marked.
"""

import argparse
import contextlib
import json
from pathlib import Path

from neuralmem import durable
from neuralmem.errors import UserError
from neuralmem.evaluation.compare_paper import compare, draw, print_comparisons, table_rows
from neuralmem.evaluation.pictures import save
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.replay import asked_checkpoint
from neuralmem.evaluation.rows import read_results
from neuralmem.evaluation.tables import screen, write_csv
from neuralmem.models.weights import weights_of

EXAMPLES = """example
  python eval.py compare-paper --out runs/mac_170m/niah
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options, with their meanings."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder of results, as eval.py niah wrote it")
    add("--debug", action="store_true", help="show where an error comes from")


def check(options: argparse.Namespace) -> None:
    """No value is wrong whatever the folder holds."""


def run(options: argparse.Namespace) -> None:
    """Print the tables, write the files.

    Raises:
        UserError: rows that cannot be read, or of several checkpoints.
    """
    results = Path(options.out)
    asked, training = read_results(results), None
    with contextlib.suppress(UserError):  # the checkpoint may be elsewhere by now, or another one
        folder = asked_checkpoint(results)
        if {row.ckpt_sha256 for row in asked} == {weights_of(folder)}:
            training = read_training_data(folder)
    comparisons = compare(asked, training)
    print_comparisons(comparisons, screen())
    out = results / "compare_paper"  # of its own, so that the report of the results stays theirs
    out.mkdir(exist_ok=True)
    rows = [row for comparison in comparisons for row in table_rows(comparison)]
    write_csv(out / "compare_paper.csv", rows)
    durable.write_file(out / "compare_paper.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    save(draw(comparisons, results.resolve().parent.name), out / "compare_paper.png")
    for name in ("compare_paper.csv", "compare_paper.jsonl", "compare_paper.png"):
        print(out / name)
