"""Results checked: makes the prompts of a folder again, computes tables and scores again, and says what differs.

Of eval.py niah and baselines every row and the table are checked, of several runs into a folder too: hash, counts,
spans and scores.
Of any other evaluation the command is given again on a copy of the rows: it must find all its prompts among them, by
their hash and that of the weights, and write the same tables; rows that it does not ask for are not looked at. Of these
rows, what the prompt decides and the scores that the model's answers give are computed again; of perplexity and
positions, whose losses are all the model's, what the text decides, and that sums of losses fit each other.
Runs no model, so what only that can say is not checked: predictions, losses and likelihoods, ranks among answers, how
many tokens were the likeliest, falls, sizes and times. Prints a line per difference and ends with exit code 1 where
there is one.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from neuralmem.errors import UserError
from neuralmem.evaluation import replay
from neuralmem.evaluation.asked import FILE, read_runs
from neuralmem.evaluation.journal import MACHINE
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.rows import read_results
from neuralmem.evaluation.verify import differences
from neuralmem.models.causal_lm import build_model
from neuralmem.models.checkpoint import read_config
from neuralmem.models.checkpoint import verify as verify_files
from neuralmem.models.pretrained import locate
from neuralmem.models.weights import weights_of
from neuralmem.tokenizer import load_tokenizer

EXAMPLES = """examples
  python eval.py verify --out runs/quickstart/niah
  python eval.py verify --out results/niah --checkpoint runs/quickstart
  python eval.py verify --out runs/quickstart/overwrite
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options, with their defaults and meanings."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder of results, as an evaluation wrote it")
    add("--checkpoint", metavar="RUN", help="the model that was asked (niah: the folder around DIR; or as it was)")
    add("--debug", action="store_true", help="show where an error comes from")


def check(options: argparse.Namespace) -> None:
    """No value is wrong whatever the folder holds."""


def run(options: argparse.Namespace) -> int:
    """Print the differences; the exit code says whether there are any.

    Raises:
        UserError: rows, settings or a checkpoint that cannot be read.
    """
    out = Path(options.out)
    if not (out / FILE).is_file():
        if (out / MACHINE).is_file():
            return _told(replay.differences(out, options.checkpoint), "prompts and tables")
        raise UserError(
            f"--out is {str(out)!r}, which has no {FILE} (of niah) and no {MACHINE} (of any evaluation that was "
            "carried to its end)"
        )
    folder = locate(options.checkpoint) if options.checkpoint else replay.asked_checkpoint(out)
    rows = read_results(out)
    training = read_training_data(folder)
    files = verify_files(folder)
    if "tokenizer.json" not in files:
        raise UserError(f"--checkpoint is {str(folder)!r}, which has no tokenizer.json")
    tokenizer = load_tokenizer(files["tokenizer.json"])
    weights = weights_of(folder)
    with torch.device("meta"):
        reach = build_model(read_config(files["config.json"])).reach
    found = differences(rows, read_runs(out), tokenizer, tokenizer.fingerprint, weights, reach, training, out)
    return _told(found, f"{len(rows):,} rows: prompts, counts and scores")


def _told(differences: Iterable[str], what: str) -> int:
    """Print them and how many there are; -> the exit code."""
    count = 0
    for line in differences:
        print(line, flush=True)
        count += 1
    about, _, last = what.rpartition(": ")
    head = f"{about}: " if about else ""
    print(f"{head}{count:,} difference{'s' * (count != 1)}" if count else f"{head}{last} are what they must be")
    return 1 if count else 0
