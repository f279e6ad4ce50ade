"""Baselines by name, with their options: `eval.py niah --baseline bm25`.

Special: a baseline is a file of baselines/, found by its name. It has a docstring whose first line says what it is;
`USES`, the names of the choices that matter to it; and `make(reader, choices)`, which gives the reader to ask with. Its
label, name and choices, is part of what identifies a result.
"""

import argparse
import ast
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.opened import check_positive, one_of
from neuralmem.evaluation.passages import UNITS, Splitter
from neuralmem.evaluation.reader import Reader

FOLDER = Path(__file__).parent / "baselines"
FINDS = ("bm25", "key")


@dataclass(frozen=True)
class Choices:
    """What can be chosen of a baseline.

    Args:
        budget: tokens of shown text, question and answer together
        passage: tokens of a passage, at most
        unit: what a passage is, of `passages.UNITS`
        capacity: tokens that key-value keeps of what was not used lately
        stay: tokens for which it keeps what was used
        find: how it finds, of `FINDS`
    """

    budget: int
    passage: int = 128
    unit: str = "line"
    capacity: int = 1024
    stay: int = 512
    find: str = "bm25"

    def splitter(self, reader: Reader) -> Splitter:
        """What cuts the reader's text into passages."""
        return Splitter(reader.tokenizer, self.passage, self.unit)


def add_baseline_options(parser: argparse.ArgumentParser) -> None:
    """The choices as options."""
    add = parser.add_argument
    add("--budget", type=int, metavar="N", help="tokens of shown text, question and answer (the reach of the model)")
    add("--passage", type=int, metavar="N", help="tokens of a passage, at most (a quarter of the budget, 8 to 128)")
    add("--unit", default="line", metavar="NAME", help="a passage is a line, or a chunk of lines (line)")
    add("--capacity", type=int, default=1024, metavar="N", help="tokens that key-value keeps of what has sunk (1024)")
    add("--stay", type=int, metavar="N", help="tokens after which what was used sinks in key-value (half the capacity)")
    add("--find", default="bm25", metavar="NAME", help="how key-value finds: bm25, or key for the very key (bm25)")


def choose(options: argparse.Namespace, reach: int) -> Choices:
    """The choices that these options make for a model of that reach.

    Raises:
        UserError: naming the option and what it must be.
    """
    check_positive(options, "budget", "passage", "capacity", "stay")
    budget = options.budget or reach
    return Choices(
        budget,
        passage=options.passage or min(128, max(8, budget // 4)),
        unit=one_of(options.unit, UNITS, "--unit"),
        capacity=options.capacity,
        stay=options.stay or max(1, options.capacity // 2),
        find=one_of(options.find, FINDS, "--find"),
    )


def names() -> dict[str, str]:
    """Names of all baselines and what each is; nothing of them is imported.

    Example:
        >>> names()["window"]
        'the last tokens of the text, as many as fit'
    """
    files = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    texts = {path.stem.replace("_", "-"): ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in files}
    return {name: (text or "").partition("\n")[0] for name, text in texts.items()}


def open_baseline(name: str, reader: Reader, choices: Choices) -> tuple[Reader, str]:
    """The reader to ask with, and the label of its results: the name and the choices that matter to it.

    Raises:
        UserError: no such baseline, or one that cannot be asked with the reader's model.
    """
    known = list(names())
    if name not in known:
        raise UserError(f"--baseline is {name!r}; it must be one of {', '.join(known)}{nearest(name, known)}")
    module: Any = importlib.import_module(f"neuralmem.evaluation.baselines.{name.replace('-', '_')}")
    if "budget" in module.USES and choices.budget >= sys.maxsize:
        raise UserError("--budget is not given; a model with full attention needs one, the tokens of text it is shown")
    label = " ".join([name, *(f"{use}={getattr(choices, use)}" for use in module.USES)])
    return module.make(reader, choices), label
