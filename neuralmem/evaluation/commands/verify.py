"""Results checked: makes the prompts of a folder again, computes counts and scores again, and says what differs.

Reads what eval.py niah wrote, and the checkpoint's tokenizer; runs no model. Prints a line per difference and ends with
exit code 1 where there is one. Not checked is what only the model can say: predictions, likelihoods and ranks.
"""

import argparse
import json
from pathlib import Path

import torch

from neuralmem.durable import manifest
from neuralmem.errors import UserError
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.rows import read_results
from neuralmem.evaluation.verify import differences, read_settings
from neuralmem.models.causal_lm import build_model
from neuralmem.models.checkpoint import read_config
from neuralmem.models.checkpoint import verify as verify_files
from neuralmem.models.pretrained import locate
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
    """No value is wrong whatever the folder holds."""


def run(options: argparse.Namespace) -> int:
    """Print the differences; the exit code says whether there are any.

    Raises:
        UserError: rows, settings or a checkpoint that cannot be read.
    """
    out = Path(options.out)
    folder = locate(options.checkpoint) if options.checkpoint else out.resolve().parent
    rows = read_results(out)
    training = read_training_data(folder)
    files = verify_files(folder)
    if "tokenizer.json" not in files:
        raise UserError(f"--checkpoint is {str(folder)!r}, which has no tokenizer.json")
    tokenizer = load_tokenizer(files["tokenizer.json"])
    weights = fingerprint(json.loads(manifest(folder) or b"{}")["files"])
    with torch.device("meta"):
        reach = build_model(read_config(files["config.json"])).reach
    count = 0
    for line in differences(rows, read_settings(out), tokenizer, tokenizer.fingerprint, weights, reach, training):
        print(line, flush=True)
        count += 1
    found = f"{count:,} difference{'s' * (count != 1)}" if count else "prompts, counts and scores are what they must be"
    print(f"{len(rows):,} rows: {found}")
    return 1 if count else 0
