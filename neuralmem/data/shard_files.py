"""The files of a folder of shards, and how they are written so that a kill at any moment leaves them usable.

manifest.json       written last: what the shards were made of and with, and of every file its size and sha256
tokenizer.json      the tokenizer
00000.tokens        token ids without a gap, uint16 or uint32, little-endian; a separator ends every document
00000.documents     uint64, little-endian: where the n documents begin and the last ends (n + 1 places), then the
                    hashes of their names (n), on which hangs whether a document is training or validation
While shards are made, plan.json stands for the manifest and 00000.json for a shard that is complete.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuralmem import durable
from neuralmem.data.faults import Faults
from neuralmem.errors import UserError

FORMAT = "neuralmem-shards-1"
MANIFEST, PLAN = "manifest.json", "plan.json"


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of a source as tokens.

    Attributes:
        tokens: Int[N] of all, in the shards' dtype
        lengths: Int[D] tokens of every document
        hashes: UInt64[D] of their names
        parts: Int[S] how many documents each document of the source has become: 0, or 1, or several of a huge one
        faults: (number among the S, kind, place) of what was wrong
    """

    tokens: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    parts: np.ndarray
    faults: tuple[tuple[int, str, str], ...] = ()

    def split(self, count: int) -> tuple["Piece", "Piece"]:
        """-> the first `count` documents of the source, and the others."""
        documents = int(self.parts[:count].sum())
        tokens = int(self.lengths[:documents].sum())
        head = Piece(
            self.tokens[:tokens],
            self.lengths[:documents],
            self.hashes[:documents],
            self.parts[:count],
            tuple(fault for fault in self.faults if fault[0] < count),
        )
        late = tuple((number - count, kind, place) for number, kind, place in self.faults if number >= count)
        rest = replace(head, tokens=self.tokens[tokens:], lengths=self.lengths[documents:], faults=late)
        return head, replace(rest, hashes=self.hashes[documents:], parts=self.parts[count:])

    def reaching(self, tokens: int) -> int:
        """-> how many documents of the source it takes to have that many tokens, or all where they have fewer."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])[np.cumsum(self.parts)]
        return min(int(np.searchsorted(ends, tokens)) + 1, len(self.parts))

    def counted(self) -> Faults:
        """-> what was wrong, counted."""
        found = Faults(documents=len(self.parts))
        for _, kind, place in self.faults:
            found.note(kind, place)
        return found


class ShardWriter:
    """One shard being written; it exists once `close` has returned.

    Args:
        folder: where
        number: of the shard
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.name = folder, f"{number:05d}"
        self.tokens = 0
        self.faults = Faults()
        self._lengths: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []
        self._sha = hashlib.sha256()
        self._part = folder / f"{self.name}.tokens.part"
        self._file = self._part.open("wb")

    def add(self, piece: Piece) -> None:
        """Append documents."""
        data = np.ascontiguousarray(piece.tokens).data
        self._file.write(data)
        self._sha.update(data)
        self.tokens += len(piece.tokens)
        self._lengths.append(piece.lengths)
        self._hashes.append(piece.hashes)
        self.faults.add(piece.counted())

    def discard(self) -> None:
        """Give up what has been written."""
        with contextlib.suppress(OSError):  # the disk that is full says so again
            self._file.close()
        self._part.unlink(missing_ok=True)

    def close(self, following: int) -> dict[str, Any]:
        """Finish the files; -> what the manifest says about them.

        Args:
            following: number of the source's first document after this shard
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self.folder / f"{self.name}.tokens")
        lengths = np.concatenate(self._lengths)
        places = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
        index = np.concatenate([places, np.concatenate(self._hashes).astype("<u8")]).tobytes()
        durable.write_file(self.folder / f"{self.name}.documents", index)
        size = (self.folder / f"{self.name}.tokens").stat().st_size
        files = {
            f"{self.name}.tokens": {"bytes": size, "sha256": self._sha.hexdigest()},
            f"{self.name}.documents": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        }
        entry = {"name": self.name, "documents": len(lengths), "tokens": self.tokens, "following": following}
        entry |= {"files": files, "source": self.faults.to_dict()}
        write_json(self.folder / f"{self.name}.json", entry)
        return entry


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write plain values and a sha256 of them, a file that is there whole or not at all."""
    text = json.dumps(values | {"sha256": _digest(values)}, indent=1)
    durable.write_file(path, f"{text}\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """-> what `write_json` wrote; None where it is not there or is something else."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.pop("sha256", None) != _digest(values):
        return None
    return values


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, files: dict[str, Any], *, deep: bool) -> str | None:
    """-> what is wrong with files, in a sentence; None where nothing is.

    Args:
        folder: where they are
        files: name -> {"bytes", "sha256"}
        deep: compare the contents, not only the sizes
    """
    for name, wanted in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != wanted["bytes"]:
            return f"{path} is damaged: it has {size} bytes, and {wanted['bytes']} when it was made"
        if deep:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                    return f"{path} is damaged: its sha256 is not that of {MANIFEST}"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """-> the manifest of a folder of shards.

    Raises:
        UserError: there is none, or it is not one that this version reads.
    """
    if not (folder / MANIFEST).is_file():
        state = "is not finished: run the same command again" if (folder / PLAN).is_file() else "is no folder of shards"
        made = "" if (folder / PLAN).is_file() else "; `python -m neuralmem.data.prepare` makes one"
        raise UserError(f"shards {str(folder)!r} {state}{made}")
    values = read_json(folder / MANIFEST)
    if values is None:
        raise UserError(f"{folder / MANIFEST} is damaged: it is not what neuralmem wrote")
    if values.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} has format {values.get('format')!r}; this version reads {FORMAT!r}")
    return values
