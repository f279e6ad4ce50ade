"""Results as lines of JSON, appended as they come, so that a run that was stopped goes on where it was.

Special: a line is one measurement and says by some of its fields which one it is; what has been measured is not
measured again, and measurements of other settings stand beside it. A last line without an end, left by a run that was
killed, is cut off. A folder belongs to one evaluation.
While rows are checked (`checking`), each that a command takes is compared with what its prompt and its answer say.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from neuralmem.durable import reason
from neuralmem.errors import UserError

MACHINE = "machine.json"
_found: ContextVar[list[str] | None] = ContextVar("found", default=None)


@contextlib.contextmanager
def checking() -> Iterator[list[str]]:
    """Inside, rows are compared as `Journal.confirm` says; yields the differences so far, a line each."""
    found: list[str] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def differences(before: Any, again: Any, name: str = "") -> Iterator[str]:
    """What differs between two JSON values; of objects, in the fields of the second.

    Example:
        >>> list(differences({"n": 1, "said": [{"exact": 1}]}, {"said": [{"exact": 0}]}))
        ['said[0].exact is 1, computed again it is 0']
    """
    if isinstance(before, dict) and isinstance(again, dict):
        for key, value in again.items():
            yield from differences(before.get(key), value, f"{name}.{key}" if name else key)
    elif isinstance(before, list) and isinstance(again, list) and len(before) == len(again):
        for i, (old, new) in enumerate(zip(before, again, strict=True)):
            yield from differences(old, new, f"{name}[{i}]")
    elif before != again:
        yield f"{name} is {before!r:.200}, computed again it is {again!r:.200}"


def made_by(folder: Path) -> list[str]:
    """The words behind `eval.py` of the command that left results in a folder; [] where its machine.json has none."""
    try:
        _, *words = shlex.split(json.loads((folder / MACHINE).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return words


def refuse_others_results(folder: Path, command: str) -> None:
    """Refuse a folder with the results of another evaluation: it has one report, and one command to be checked by.

    Raises:
        UserError: the folder's machine.json names another command, or it is a model's, whose files these are not.
    """
    if (folder / "config.json").is_file():
        raise UserError(f"--out is {str(folder)!r}, the folder of a model; give one in it: {folder / command}")
    if (words := made_by(folder)) and words[0] != command:
        raise UserError(
            f"--out is {str(folder)!r}, which holds results of eval.py {words[0]}; give {command} another folder"
        )


def append_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows as lines, in one write; the folder is made if needed.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise UserError(f"--out has {path}, which cannot be written: {reason(error)}") from None


def read_lines(path: Path, repair: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a file; none if it is not there. An unfinished last line is no row.

    Args:
        path: the file
        repair: cut an unfinished line off the file; for who goes on writing it, as another may be writing it now

    Raises:
        UserError: a line that is no JSON object.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if repair and whole < len(data):
        with path.open("rb+") as file:
            file.truncate(whole)
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"--out has {path}, whose line {number} is not a result row; give another folder")
        yield row


class Journal:
    """Measurements of one kind in one file.

    Args:
        path: the file, called as the evaluation; made with its folder when the first row is added
        identity: names of the fields that tell one measurement from another

    Raises:
        UserError: the file holds something else, or the folder another evaluation's results.

    Example:
        >>> from tempfile import mkdtemp
        >>> journal = Journal(Path(mkdtemp()) / "copy.jsonl", ("length", "seed"))
        >>> journal.add({"length": 64, "seed": 0, "exact": 1.0})
        >>> Journal(journal.path, ("length", "seed")).find(length=64, seed=0)["exact"]
        1.0
        >>> journal.find(length=64, seed=1) is None
        True
    """

    def __init__(self, path: Path, identity: Sequence[str]) -> None:
        refuse_others_results(path.parent, path.stem.replace("_", "-"))
        self.path, self.identity = path, tuple(identity)
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._lines: dict[tuple[Any, ...], int] = {}
        for number, row in enumerate(read_lines(path, repair=True), 1):
            if missing := [name for name in self.identity if name not in row]:
                raise UserError(f"--out has {path}, whose rows have no {missing[0]}; give another folder")
            self._rows[self._key(row)], self._lines[self._key(row)] = row, number

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(json.dumps(row[name]) for name in self.identity)

    def find(self, **identity: Any) -> dict[str, Any] | None:
        """The measurement with these values of its identity, or None if it has not been made."""
        return self._rows.get(self._key(identity))

    def add(self, *rows: dict[str, Any]) -> None:
        """Write measurements down, all in one write.

        Raises:
            UserError: the file cannot be written.
        """
        append_lines(self.path, rows)
        self._rows.update((self._key(row), row) for row in rows)

    def confirm(self, row: dict[str, Any], again: Callable[[], Mapping[str, Any]]) -> None:
        """While rows are checked, compare one that was found with what it must be; at other times do nothing.

        Args:
            row: of this journal
            again: computes fields of it again, from its prompt and from what the model said
        """
        if (found := _found.get()) is not None:
            must = json.loads(json.dumps(dict(again())))
            where = f"{self.path.name} line {self._lines.get(self._key(row), 'new')}"
            found.extend(f"{where}: {difference}" for difference in differences(row, must))
