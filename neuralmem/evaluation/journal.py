"""Results as lines of JSON, appended as they come, so that a run that was stopped goes on where it was.

Special: a line is one measurement and says by some of its fields which one it is; what has been measured is not
measured again, and measurements of other settings stand beside it. A last line without an end, left by a run that was
killed, is cut off.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neuralmem.durable import reason
from neuralmem.errors import UserError


def append_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows as lines, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


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
        path: the file; made with its folder when the first row is added
        identity: names of the fields that tell one measurement from another

    Raises:
        UserError: the file holds something else.

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
        self.path, self.identity = path, tuple(identity)
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in read_lines(path, repair=True):
            if missing := [name for name in self.identity if name not in row]:
                raise UserError(f"--out has {path}, whose rows have no {missing[0]}; give another folder")
            self._rows[self._key(row)] = row

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(json.dumps(row[name]) for name in self.identity)

    def find(self, **identity: Any) -> dict[str, Any] | None:
        """The measurement with these values of its identity, or None if it has not been made."""
        return self._rows.get(self._key(identity))

    def add(self, *rows: dict[str, Any]) -> None:
        """Write measurements down, all in one write."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self.path, rows)
        except OSError as error:
            raise UserError(f"--out has {self.path}, which cannot be written: {reason(error)}") from None
        self._rows.update((self._key(row), row) for row in rows)
