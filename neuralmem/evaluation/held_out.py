"""Text that training did not read, as documents and as rows of equal length.

Special: a row says whether it is the beginning of a document, a later part of one, or short documents joined, because
a loss by position means what it says for the first kind only.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, tee
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
    """Int[T] tokens, and what they are: the beginning of a document, a later part of one, or several joined.

    Rows of one document have its name; a row of joined ones has one of its own.
    """

    tokens: Tensor
    kind: Kind
    document: str


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


def shuffled_lines(text: str, seed: int) -> str:
    r"""The lines of a text in random order.

    Where a line stands then says nothing of what it is, so a text gets no easier as it goes on by itself: for a model
    that sees a few lines the loss is level, and what falls is what memory makes of the lines before.

    Example:
        >>> shuffled_lines("1\n2\n3\n4", seed=0)
        '1\n2\n4\n3'
    """
    lines = text.split("\n")
    Random(f"{seed}/{text}").shuffle(lines)
    return "\n".join(lines)


def rows_of(
    documents: Iterable[Document],
    encode: Callable[[str], list[int]],
    length: int,
    rows: int,
    shuffled: int | None = None,
) -> Iterator[HeldOutRow]:
    """Up to `rows` rows of length + 1 tokens: beginnings of documents first, then later parts, then joined ones.

    Args:
        documents: read until there are enough, or 32 characters have been seen for every token wanted
        encode: text to token ids
        length: predicted tokens per row
        rows: as many as wanted; fewer come where the text ends
        shuffled: seed of a random order of lines, within every document, and within every row of joined ones, as
            `shuffled_lines`; None: as they stand

    Example:
        >>> texts = [Document("a", "abcdefg"), Document("b", "xy"), Document("c", "z")]
        >>> [(bytes(row.tokens.tolist()), row.kind) for row in rows_of(texts, lambda t: list(t.encode()), 2, 3)]
        [(b'abc', 'beginning'), (b'def', 'part'), (b'xyz', 'joined')]
    """
    beginnings: list[HeldOutRow] = []
    parts: list[HeldOutRow] = []
    rest: list[str] = []
    names, texts = tee(documents)
    some = limited((document.text for document in texts), CHARACTERS * rows * length)
    for text, name in zip(some, (document.id for document in names), strict=False):
        ids = encode(text if shuffled is None else shuffled_lines(text, shuffled))
        if len(ids) <= length:
            rest.append(text)
            continue
        first, *others = (torch.tensor(row) for row in _cut(ids, length + 1))
        beginnings.append(HeldOutRow(first, "beginning", name))
        parts += [HeldOutRow(row, "part", name) for row in others[: rows - len(parts)]]
        if len(beginnings) == rows:
            break
    joined = _joined(rest, encode, length + 1, shuffled)
    last = (HeldOutRow(torch.tensor(row), "joined", f"joined {n}") for n, row in enumerate(joined))
    yield from islice(chain(beginnings, parts, last), rows)


def _joined(
    texts: Iterable[str], encode: Callable[[str], list[int]], size: int, shuffled: int | None
) -> Iterator[list[int]]:
    """Rows of short texts: one after the other; or, shuffled, as many as fill a row and the lines of all of them in
    random order, for else where a text stands would count."""
    ids: list[int] = []
    group: list[str] = []
    for text in texts:
        ids += encode(text)
        group.append(text)
        if shuffled is None:
            while len(ids) >= size:
                yield ids[:size]
                ids = ids[size:]
        elif len(ids) >= size and len(mixed := encode(shuffled_lines("\n".join(group), shuffled))) >= size:
            yield mixed[:size]
            ids, group = [], []


def _cut(ids: list[int], size: int) -> list[list[int]]:
    """Whole rows of so many tokens."""
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
