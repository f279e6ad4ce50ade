"""Text that training did not read, as documents and as rows of equal length.

Special: a row says whether it is the beginning of a document, a later part of one, or short documents joined, because
a loss by position means what it says for the first kind only.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neuralmem.data.corpus import VALIDATION_SHARE
from neuralmem.data.document import Document, limited
from neuralmem.data.sources import open_source
from neuralmem.errors import UserError, nearest
from neuralmem.evaluation.recall import CORPORA, TrainingData

NAMES = (*CORPORA, "file:PATH")
CHARACTERS = 32  # of text per token that is looked at, at most
_WHOLE = 1 << 40  # bytes; a user's file is one document, however large

Kind = Literal["beginning", "part", "joined"]


class Text(NamedTuple):
    """Documents to be read, and how results name them."""

    id: str
    documents: Callable[[], Iterator[Document]]


class HeldOutRow(NamedTuple):
    """Int[T] tokens, and what they are: the beginning of a document, a later part of one, or several joined."""

    tokens: Tensor
    kind: Kind


def open_text(name: str, training: TrainingData) -> Text:
    """Held-out text.

    Args:
        name: "" for the validation documents of what the checkpoint was trained on, "builtin" or "stdlib" (their
            validation documents), or "file:PATH", all of a file, folder or glob: a text file is one document, a
            record of jsonl or parquet another
        training: of the checkpoint

    Raises:
        UserError: there is no such text.

    Example:
        >>> text = open_text("builtin", TrainingData())
        >>> text.id, len(next(text.documents()).text) > 100
        ('builtin validation', True)
    """
    if name.startswith("file:"):
        path = name[5:]
        source = open_source(path, side="all", document_bytes=_WHOLE)
        return Text(f"file:{Path(path).name}", source.read)
    if name and name not in CORPORA:
        raise UserError(f"--haystack is {name!r}; it must be one of {', '.join(NAMES)}{nearest(name, NAMES)}")
    spec = name or training.source
    share = VALIDATION_SHARE if name and name != training.source else training.share
    label = spec if isinstance(spec, str) else "+".join(spec)
    return Text(f"{Path(label).name} validation", open_source(spec, side="validation", share=share).read)


def with_lines_shuffled(text: Text, seed: int) -> Text:
    r"""The same documents, the lines of each in random order.

    Where a line stands then says nothing of what it is, so a document gets no easier as it goes on by itself: for a
    model that sees a few lines the loss is level, and what falls is what memory makes of the lines before.

    Example:
        >>> text = Text("poems", lambda: iter([Document("a", "1\n2\n3\n4")]))
        >>> shuffled = with_lines_shuffled(text, seed=0)
        >>> shuffled.id, next(shuffled.documents()).text
        ('poems, lines shuffled', '3\n4\n2\n1')
    """

    def shuffled(document: Document) -> Document:
        lines = document.text.split("\n")
        Random(f"{seed}/{document.id}").shuffle(lines)
        return document._replace(text="\n".join(lines))

    return Text(f"{text.id}, lines shuffled", lambda: map(shuffled, text.documents()))


def rows_of(
    documents: Iterable[Document], encode: Callable[[str], list[int]], length: int, rows: int
) -> Iterator[HeldOutRow]:
    """Up to `rows` rows of length + 1 tokens: beginnings of documents first, then later parts, then joined ones.

    Args:
        documents: read until there are enough, or 32 characters have been seen for every token wanted
        encode: text to token ids
        length: predicted tokens per row
        rows: as many as wanted; fewer come where the text ends

    Example:
        >>> texts = [Document("a", "abcdefg"), Document("b", "xy"), Document("c", "z")]
        >>> [(bytes(row.tokens.tolist()), row.kind) for row in rows_of(texts, lambda t: list(t.encode()), 2, 3)]
        [(b'abc', 'beginning'), (b'def', 'part'), (b'xyz', 'joined')]
    """
    beginnings: list[list[int]] = []
    parts: list[list[int]] = []
    rest: list[int] = []
    for text in limited((document.text for document in documents), CHARACTERS * rows * length):
        ids = encode(text)
        if len(ids) <= length:
            rest += ids
            continue
        first, *others = _cut(ids, length + 1)
        beginnings.append(first)
        parts += others[: rows - len(parts)]
        if len(beginnings) == rows:
            break
    kinds: list[tuple[Kind, list[list[int]]]] = [("beginning", beginnings), ("part", parts)]
    kinds.append(("joined", _cut(rest, length + 1)))
    found = (HeldOutRow(torch.tensor(row), kind) for kind, some in kinds for row in some)
    yield from islice(found, rows)


def _cut(ids: list[int], size: int) -> list[list[int]]:
    """Whole rows of so many tokens."""
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
