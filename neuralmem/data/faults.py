"""What was wrong with the documents of a source: counted by kind, with the first of each, and never in the way.

empty     no text; left out
corrupt   cannot be read: no JSON, no text in it, a damaged file; left out
not_utf8  bytes that are not UTF-8 were replaced by U+FFFD; kept
huge      longer than what is turned into tokens at once; cut, by `prepare` into several documents
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from neuralmem.data.document import Document, Source, Unreadable
from neuralmem.errors import UserError

LONGEST = 1 << 24  # characters of a document that are turned into tokens at once
KINDS = ("empty", "corrupt", "not_utf8", "huge")
_HOPELESS = 100  # if as many documents cannot be read, and none could, the settings are wrong, not the documents


@dataclass
class Faults:
    """Counts of documents.

    Attributes:
        documents: how many were looked at
        counts: kind -> number of documents
        first: kind -> the first of them, and what was wrong

    Example:
        >>> faults = Faults()
        >>> faults.look(); faults.note("empty", "a.txt"); faults.look()
        >>> faults.line()
        '1 of 2 documents were empty (left out; first: a.txt)'
    """

    documents: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """Count a document, whatever is wrong with it."""
        self.documents += 1

    def note(self, kind: str, place: str) -> None:
        """Count something wrong with the document looked at last."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, place)

    def unreadable(self, document: Unreadable) -> None:
        """Count a document that cannot be read.

        Raises:
            UserError: none of many could be read.
        """
        self.note("corrupt", document.error)
        if self.counts["corrupt"] == self.documents == _HOPELESS:
            raise UserError(f"{self.first['corrupt']} (none of the first {_HOPELESS} documents can be read)")

    def warn(self) -> None:
        """Warn of documents that cannot be read: of the 1st, the 10th, the 100th and so on."""
        count = self.counts.get("corrupt", 0)
        if set(str(count)[1:]) <= {"0"} and str(count)[0] == "1":
            warnings.warn(f"{count} document(s) cannot be read and are left out: {self.first['corrupt']}", stacklevel=2)

    def add(self, other: Self) -> None:
        """Count what another one has counted, of later documents."""
        self.documents += other.documents
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        self.first = other.first | self.first

    def line(self) -> str:
        """-> all that is to be said, in one line; empty where nothing was wrong."""
        done = {"empty": "left out", "corrupt": "left out", "not_utf8": "replaced by U+FFFD", "huge": "cut"}
        parts = [
            f"{self.counts[kind]} of {self.documents} documents were {kind.replace('_utf', ' UTF-')} "
            f"({done[kind]}; first: {self.first[kind]})"
            for kind in KINDS
            if kind in self.counts
        ]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """-> plain values, in the order of `KINDS`."""
        kinds = [kind for kind in KINDS if kind in self.counts]
        return {
            "documents": self.documents,
            "counts": {kind: self.counts[kind] for kind in kinds},
            "first": {kind: self.first[kind] for kind in kinds},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The reverse of `to_dict`."""
        return cls(int(values["documents"]), dict(values["counts"]), dict(values["first"]))


def has_surrogates(text: str) -> bool:
    """Whether a text has halves of surrogate pairs, which JSON can smuggle in; the tokenizer replaces them."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def texts_of(source: Source) -> Iterator[str]:
    """-> the texts of a source; documents that cannot be read are left out, with a warning.

    Raises:
        UserError: it holds tokens, or nothing of it can be read.
    """
    faults = Faults()
    for document in source.scan():
        faults.look()
        if isinstance(document, Document):
            yield document.text
        elif isinstance(document, Unreadable):
            faults.unreadable(document)
            faults.warn()
        else:
            raise UserError(
                f"source {source.name!r} holds tokens, and text is needed here; for shards tokenizer must be FOLDER"
            )
    if faults.documents == faults.counts.get("corrupt"):
        raise UserError(faults.first["corrupt"])
