"""Results checked: makes the prompts of a folder again, computes counts and scores again, and says what differs.

Reads what eval.py niah wrote, and the checkpoint's tokenizer; runs no model. Prints a line per difference and ends with
exit code 1 where there is one. Not checked is what only the model can say: predictions, likelihoods and ranks.
"""

import argparse
import json
from pathlib import Path

from neuralmem.durable import manifest
from neuralmem.errors import UserError
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.rows import read
from neuralmem.evaluation.verify import differences
from neuralmem.models.checkpoint import verify as verify_files
from neuralmem.models.weights import fingerprint
from neuralmem.tokenizer import load_tokenizer

EXAMPLES = """examples
  python eval.py verify --out runs/quickstart/niah
  python eval.py verify --out results/niah --checkpoint runs/quickstart
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options, with their defaults and meanings."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder of results, as eval.py niah wrote it")
    add("--checkpoint", metavar="RUN", help="folder of the model that was asked (the folder that DIR lies in)")
    add("--debug", action="store_true", help="show where an error comes from")


def check(options: argparse.Namespace) -> None:
    """Refuse a folder without rows.

    Raises:
        UserError: naming the option.
    """
    if not (Path(options.out) / "rows.jsonl").is_file():
        raise UserError(f"--out is {options.out!r}, which has no rows.jsonl; it must be a folder of eval.py niah")


def run(options: argparse.Namespace) -> int:
    """Print the differences; the exit code says whether there are any.

    Raises:
        UserError: rows, settings or a checkpoint that cannot be read.
    """
    out = Path(options.out)
    folder = Path(options.checkpoint) if options.checkpoint else out.resolve().parent
    training = read_training_data(folder)
    files = verify_files(folder)
    if "tokenizer.json" not in files:
        raise UserError(f"--checkpoint is {str(folder)!r}, which has no tokenizer.json")
    tokenizer = load_tokenizer(files["tokenizer.json"])
    weights = fingerprint(json.loads(manifest(folder) or b"{}")["files"])
    count = 0
    for line in differences(out, tokenizer, tokenizer.fingerprint, weights, training):
        print(line, flush=True)
        count += 1
    rows = sum(1 for _ in read(out / "rows.jsonl"))
    print(f"{rows:,} rows: {f'{count:,} differences' if count else 'prompts, counts and scores are what they must be'}")
    return 1 if count else 0
