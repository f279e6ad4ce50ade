"""Whether the results of any evaluation are what they say: the command is given again, and must have nothing to ask.

Special: every evaluation keeps its answers under the hash of what was asked, and asks only what it does not have. So
the same command on a copy of the results makes its prompts again, finds all of them answered, and writes the same
tables; a model that is called all the same says that a prompt, the checkpoint or a setting is another one. Rows that
are found must say of their prompt what it says itself, and their scores must be those of their answers
(`Journal.confirm`).
Source: evaluation.md section 9, point 12.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from neuralmem.errors import UserError
from neuralmem.evaluation.cli import find, parse
from neuralmem.evaluation.haystack import open_haystack
from neuralmem.evaluation.journal import MACHINE, checking, made_by, read_lines
from neuralmem.evaluation.recall import CORPORA, read_training_data
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.pretrained import locate

CONFIG = "config.json"
_NOT_THERE = "a prompt that the command makes is not among the rows of {}, or is of another model"


class Asked(Exception):
    """The model was called."""


def differences(out: Path, checkpoint: str | None) -> Iterator[str]:
    """What differs between the results in a folder and those of the command that made them, a line each.

    Args:
        out: the folder, with machine.json
        checkpoint: of the model that was asked; None: as the command has it

    Raises:
        UserError: no command in the folder, or one that cannot be given again.
    """
    name, arguments = read_command(out)
    try:
        options = parse(name, arguments)
        given = options.checkpoint
    except (UserError, AttributeError) as error:
        raise UserError(f"--out has {out / MACHINE}, whose command cannot be given again: {error}") from None
    options.checkpoint, options.device = checkpoint or given, "cpu"  # no model is asked, so any device will do
    with TemporaryDirectory() as folder:
        again = Path(folder)
        for file in out.glob("*.jsonl"):
            shutil.copy(file, again)
        options.out = folder
        with checking() as found:
            try:
                with _nobody_asked(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                    find(name).run(options)
                asked = list[str]()
            except UserError as error:
                raise UserError(
                    f"--out has {out / MACHINE}, whose command cannot be given again here: {error}"
                ) from None
            except Asked:
                asked = [_other_text(out, options) or f"{name}: {_NOT_THERE.format(out)}{_other_python(out)}"]
        yield from found + asked
        for table in () if asked else sorted(again.glob("*.csv")):
            yield from compare(table.read_text(encoding="utf-8"), out / table.name)


def read_command(out: Path) -> tuple[str, list[str]]:
    """The name of the evaluation that left results in a folder, and its arguments.

    Raises:
        UserError: the folder does not say.
    """
    if not (words := made_by(out)):
        raise UserError(f"--out is {str(out)!r}, whose machine.json does not say which command made it")
    return words[0], words[1:]


def asked_checkpoint(out: Path) -> Path:
    """The checkpoint that the results of eval.py niah in a folder are of: what its command names, or that around it.

    Raises:
        UserError: the folder does not say, or that checkpoint is not there.
    """
    places = [out.resolve().parent]
    if (out / MACHINE).is_file():
        name, arguments = read_command(out)
        with contextlib.suppress(UserError):  # it may be elsewhere by now
            places.insert(0, locate(parse(name, arguments).checkpoint))
    if found := next((place for place in places if (place / CONFIG).is_file()), None):
        return found
    raise UserError(f"--out is {str(out)!r}, which does not say what was asked; give --checkpoint RUN")


def another_haystack(rows: str, before: str, now: str) -> str:
    """The line on a haystack whose text is not what it was.

    Args:
        rows: which rows, in words
        before: its id in these rows
        now: its id here
    """
    if not before.startswith(tuple(f"{name}-held-out:" for name in CORPORA)):
        return f"haystack: {rows} have {before}, its text is now {now}; verify with the text that was asked of"
    return (
        f"haystack: {rows} have {before}, this Python gives {now} (text of the Python library differs between "
        f"versions); verify with the Python that {MACHINE} names"
    )


def _other_text(out: Path, options: argparse.Namespace) -> str:
    """What to say where no row of the command's seed is of the library that this Python has; else nothing."""
    rows = [row for file in sorted(out.glob("*.jsonl")) for row in read_lines(file)]
    ids = {str(row.get("haystack_id")) for row in rows if row.get("seed") == options.seed}
    for flavour in CORPORA:
        if before := sorted(one for one in ids if one.startswith(f"{flavour}-held-out:")):
            now = open_haystack(flavour, 0, options.seed, read_training_data(options.checkpoint).share).id
            if now not in before:
                return another_haystack("the rows", ", ".join(before), now)
    return ""


def _other_python(out: Path) -> str:
    """A hint where another version of Python made the results, which has another library."""
    before, now = json.loads((out / MACHINE).read_text(encoding="utf-8")).get("Python"), platform.python_version()
    if before in (None, now):
        return ""
    return f" (Python {before} made it, this is {now}: text of the Python library differs between versions)"


@contextlib.contextmanager
def _nobody_asked() -> Iterator[None]:
    def refuse(module: Any, given: Any) -> None:
        if isinstance(module, CausalLM):
            raise Asked

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def compare(again: str, before: Path) -> Iterator[str]:
    """Lines of a table that are not those of the file made before."""
    if not before.is_file():
        yield f"{before}: missing"
        return
    new, old = again.splitlines(), before.read_text(encoding="utf-8").splitlines()
    if len(new) != len(old):
        yield f"{before}: it has {len(old)} lines, made again it has {len(new)}"
    for number, (now, then) in enumerate(zip(new, old, strict=False), 1):
        if now != then:
            yield f"{before} line {number} is {then!r}, made again it is {now!r}"
