"""Documents, the rule that splits them into training and validation, and the sources that hold them.

What is special: a source can be read from any document on in any shuffled order without reading what comes before,
which makes an exact resume cheap, and a document belongs to training or validation by the hash of its name alone.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch

from neuralmem.errors import UserError, nearest

Side = Literal["train", "validation", "all"]


class Document(NamedTuple):
    """A text that is read from a fresh memory.

    Attributes:
        id: where it comes from, for example "stdlib/json/decoder.py" or "books.jsonl#17"
        text: its text
    """

    id: str
    text: str


def on_side(key: str, side: Side, share: float) -> bool:
    """Whether a document belongs to a side. The choice hangs on nothing but the key and the share.

    Args:
        key: what names the document, independent of the machine
        side: "train", "validation", or "all"
        share: part of all keys that is validation, 0 to 1

    Example:
        >>> [key for key in "abcdefgh" if on_side(key, "validation", 0.25)]
        ['c', 'e', 'f']
    """
    if side not in get_args(Side):
        raise UserError(
            f"side is {side!r}; it must be one of {', '.join(get_args(Side))}{nearest(side, get_args(Side))}"
        )
    if side == "all":
        return True
    number = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")
    return (number < share * 2**64) == (side == "validation")


def limited(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts until so many characters have been given; the last text is cut.

    Example:
        >>> list(limited(["abc", "def", "ghi"], 5))
        ['abc', 'de']
    """
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


class Source(ABC):
    """Documents in an order that can be shuffled.

    Attributes:
        name: as the user wrote it, for messages
        count: number of documents; None where it is not known, as for a stream
    """

    name: str
    count: int | None

    @abstractmethod
    def read(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document]:
        """-> documents number start, start + step, ... of the order that `shuffle` names; None: the natural order."""


class Indexed(Source):
    """A source whose documents can be fetched by number.

    Args:
        name: for messages
        size: number of documents on both sides
        key: number -> what names a document, independent of the machine; the split hangs on it
        fetch: number -> text; like `key` not a lambda, since spawned loader processes get the source pickled
        groups: first numbers of runs that are cheap to read together, ascending from 0; shuffling keeps runs together
        side: "train", "validation" or "all"
        share: part that is validation. Where one side would get nothing (a single file), every document is cut, and
            its last `share` is validation.

    Raises:
        UserError: no documents, or a share outside 0..1.
    """

    def __init__(
        self,
        name: str,
        size: int,
        key: Callable[[int], str],
        fetch: Callable[[int], str],
        *,
        groups: Sequence[int] = (),
        side: Side = "all",
        share: float = 0.0,
    ) -> None:
        if not size:
            raise UserError(f"source {name!r} is empty; it must hold at least one document")
        if not 0 <= share < 1:
            raise UserError(f"validation.share is {share}; it must be at least 0 and less than 1")
        if share == 0 and side == "validation":
            raise UserError(f"validation.share is 0; it must be above 0, or {name!r} has no validation documents")
        self.name, self._key, self._fetch, self._groups, self._share = name, key, fetch, groups, share
        mine = [number for number in range(size) if on_side(key(number), side, share)]
        self._cut: Side = side if side != "all" and share > 0 and len(mine) in (0, size) else "all"
        self._numbers = torch.tensor(mine if self._cut == "all" else range(size))
        self.count = len(self._numbers)

    def read(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document]:
        order = self._order(shuffle)
        for place in range(start, self.count or 0, step):
            yield self._document(int(order[place]))

    def _order(self, shuffle: int | None) -> torch.Tensor:
        """-> Int[count] document numbers in the order that `shuffle` names."""
        if shuffle is None:
            return self._numbers
        generator = torch.Generator().manual_seed(shuffle)
        mixed = self._numbers[torch.randperm(len(self._numbers), generator=generator)]
        if not self._groups:
            return mixed
        group = torch.searchsorted(torch.tensor(self._groups), mixed, right=True)
        rank = torch.randperm(len(self._groups) + 1, generator=generator)
        return mixed[rank[group].argsort(stable=True)]

    def _document(self, number: int) -> Document:
        text = self._fetch(number)
        if self._cut != "all":
            cut = int(len(text) * (1 - self._share))
            cut = next((place for place in range(cut, len(text)) if text[place].isspace()), cut)
            text = text[:cut] if self._cut == "train" else text[cut:].lstrip()
        return Document(self._key(number), text)


class Texts(Indexed):
    """Documents that are in memory, as (id, text) pairs.

    Example:
        >>> [document.id for document in Texts([("a", "one"), ("b", "two")]).read(start=1)]
        ['b']
    """

    def __init__(
        self, documents: Sequence[tuple[str, str]], name: str = "texts", side: Side = "all", share: float = 0.0
    ) -> None:
        ids, texts = partial(_part, documents, 0), partial(_part, documents, 1)
        super().__init__(name, len(documents), ids, texts, side=side, share=share)


def _part(documents: Sequence[tuple[str, str]], part: int, number: int) -> str:
    return documents[number][part]


class Joined(Source):
    """Several sources as one: the documents of the first, then those of the next, or all of them shuffled."""

    def __init__(self, name: str, sources: Sequence[Indexed]) -> None:
        self.name, self._sources = name, sources
        self.count = sum(source.count or 0 for source in sources)

    def read(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document]:
        # Which source a place belongs to is shuffled; each source keeps its own order, and with it its groups.
        owner = torch.cat([torch.full((source.count or 0,), i) for i, source in enumerate(self._sources)])
        if shuffle is not None:
            owner = owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(shuffle))]
        numbers = torch.empty_like(owner)
        for i, source in enumerate(self._sources):
            numbers[owner == i] = source._order(shuffle)
        for place in range(start, len(owner), step):
            yield self._sources[int(owner[place])]._document(int(numbers[place]))
