"""Documents, the rule that splits them into training and validation, and the sources that hold them.

What is special: a source can be read from any document on in any shuffled order without reading what comes before,
which makes an exact resume cheap, and a document belongs to training or validation by the hash of its name alone. A
document that cannot be read takes its place in the order all the same, so that a run of days can count it and go on.
"""

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from neuralmem.errors import UserError, nearest
from neuralmem.tokenizer import Tokenizer

Side = Literal["train", "validation", "all"]


class Document(NamedTuple):
    """A text that is read from a fresh memory.

    Attributes:
        id: where it comes from, for example "stdlib/json/decoder.py" or "books.jsonl#17"
        text: its text
        replaced: places that were not UTF-8, in which U+FFFD stands now
        key: what its side hangs on; empty: its id
    """

    id: str
    text: str
    replaced: int = 0
    key: str = ""


class Unreadable(NamedTuple):
    """A document that cannot be read, and why, in a sentence for the user."""

    id: str
    error: str


class Tokenized(NamedTuple):
    """A document that was turned into tokens before, Int[N] with the separator at its end."""

    id: str
    tokens: Tensor


def key_hash(key: str) -> int:
    """64 bits of a hash of a document's name, which is all that its side hangs on."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")


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
    return (key_hash(key) < share * 2**64) == (side == "validation")


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
    def scan(
        self, start: int = 0, step: int = 1, *, shuffle: int | None = None
    ) -> Iterator[Document | Unreadable | Tokenized]:
        """-> documents number start, start + step, ... of the order that `shuffle` names; None: the natural order."""

    def read(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document]:
        """As `scan`, for those who need every text.

        Raises:
            UserError: at a document that cannot be read, or one that is tokens already.
        """
        for found in self.scan(start, step, shuffle=shuffle):
            if isinstance(found, Unreadable):
                raise UserError(found.error)
            if isinstance(found, Tokenized):
                raise UserError(f"source {self.name!r} holds tokens, and text is needed here; use the text it is from")
            yield found

    def accept(self, tokenizer: Tokenizer) -> None:  # noqa: B027 - most sources hold text
        """Refuse a tokenizer that does not go with what the source holds; text goes with any.

        Raises:
            UserError: the source holds tokens of another one.
        """

    def fingerprint(self) -> list[str]:
        """-> what a saved position hangs on, a line for each part; where one has changed, the position means nothing.

        Names, sizes and options, the same wherever the files lie; not every byte, which would take too long.
        """
        return [f"{self.name}: {self.count} documents"]

    def mean_length(self, documents: int = 64) -> float:
        """-> length of a document on average, in characters, from some of them; in tokens where these are stored."""
        step = max(1, (self.count or 0) // documents)
        lengths = [len(d.text) for d in islice(self.scan(0, step), documents) if isinstance(d, Document)]
        return sum(lengths) / len(lengths) if any(lengths) else 1.0


class Numbered(Source):
    """A source with a known number of documents, each of which can be fetched alone."""

    count: int

    @abstractmethod
    def order(self, shuffle: int | None) -> Callable[[int], Document | Unreadable | Tokenized]:
        """-> place -> document, in the order that `shuffle` names; setting it up costs once, a document little."""

    def scan(
        self, start: int = 0, step: int = 1, *, shuffle: int | None = None
    ) -> Iterator[Document | Unreadable | Tokenized]:
        if start < self.count:
            yield from map(self.order(shuffle), range(start, self.count, step))


class Indexed(Numbered):
    """A source whose documents can be fetched by number.

    Args:
        name: for messages
        size: number of documents on both sides
        key: number -> what names a document, independent of the machine; the split hangs on it
        fetch: number -> text and how many places of it were not UTF-8, or UserError or OSError where it cannot be read;
            like `key` not a lambda, since spawned loader processes get the source pickled
        groups: first numbers of runs that are cheap to read together, ascending from 0; shuffling keeps runs together
        side: "train", "validation" or "all"
        share: part that is validation. Where one side would get nothing (a single file), every document is cut, and
            its last `share` is validation.
        side_key: from a document's name to what its side hangs on; None: its name
        content: what the documents are, in words that change when they do; for `fingerprint`

    Raises:
        UserError: no documents, or a share outside 0..1.
    """

    def __init__(
        self,
        name: str,
        size: int,
        key: Callable[[int], str],
        fetch: Callable[[int], tuple[str, int]],
        *,
        groups: Sequence[int] = (),
        side: Side = "all",
        share: float = 0.0,
        side_key: Callable[[str], str] | None = None,
        content: str = "",
    ) -> None:
        if not size:
            raise UserError(f"source {name!r} is empty; it must hold at least one document")
        check_share(name, side, share)
        self.name, self._key, self._fetch, self._groups, self._share = name, key, fetch, groups, share
        self._side_key, self._content = side_key, f"{described(side, share)} of {content or name}"
        keys = (side_key(key(number)) if side_key else key(number) for number in range(size))
        mine = range(size) if side == "all" else [n for n, one in enumerate(keys) if on_side(one, side, share)]
        self._cut: Side = side if side != "all" and share > 0 and len(mine) in (0, size) else "all"
        self._numbers = torch.arange(size) if len(mine) == size or self._cut != "all" else torch.tensor(mine)
        self.count = len(self._numbers)

    def fingerprint(self) -> list[str]:
        return [f"{self.count} {self._content}"]

    def order(self, shuffle: int | None) -> Callable[[int], Document | Unreadable | Tokenized]:
        numbers = self._shuffled(shuffle).numpy()  # an element of which costs a fiftieth of a tensor's
        return lambda place: self._document(int(numbers[place]))

    def _shuffled(self, shuffle: int | None) -> torch.Tensor:
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

    def _document(self, number: int) -> Document | Unreadable:
        key = self._key(number)
        try:
            text, replaced = self._fetch(number)
        except UserError as error:
            return Unreadable(key, str(error))
        except OSError as error:
            return Unreadable(key, f"source {key} cannot be read: {error.strerror or error}")
        if self._cut != "all":
            cut = int(len(text) * (1 - self._share))
            cut = next((place for place in range(cut, len(text)) if text[place].isspace()), cut)
            text = text[:cut] if self._cut == "train" else text[cut:].lstrip()
        return Document(key, text, replaced, self._side_key(key) if self._side_key else "")


def described(side: Side, share: float) -> str:
    """What the documents of a side are called where they are counted.

    Example:
        >>> described("all", 0.1), described("validation", 0.1)
        ('documents', 'validation documents (share 0.1)')
    """
    return "documents" if side == "all" else f"{side} documents (share {share:g})"


def check_share(name: str, side: Side, share: float) -> None:
    """Refuse a share of validation documents that is none.

    Raises:
        UserError: it is outside 0..1, or 0 although validation documents are wanted.
    """
    if not 0 <= share < 1:
        raise UserError(f"validation.share is {share}; it must be at least 0 and less than 1")
    if share == 0 and side == "validation":
        raise UserError(f"validation.share is 0; it must be above 0, or {name!r} has no validation documents")


class Texts(Indexed):
    """Documents that are in memory, as (id, text) pairs.

    Example:
        >>> [document.id for document in Texts([("a", "one"), ("b", "two")]).read(start=1)]
        ['b']
    """

    def __init__(
        self,
        documents: Sequence[tuple[str, str]] | Sequence[Document],
        name: str = "texts",
        side: Side = "all",
        share: float = 0.0,
        side_key: Callable[[str], str] | None = None,
    ) -> None:
        ids, texts = partial(_part, documents), partial(_text, documents)
        super().__init__(name, len(documents), ids, texts, side=side, share=share, side_key=side_key)
        self._documents = documents

    def fingerprint(self) -> list[str]:
        found = hashlib.blake2b(digest_size=8)
        for document in self._documents:
            for part in document[:2]:
                found.update(f"{len(part)} {part}".encode("utf-8", "replace"))
        return [f"{line}, {found.hexdigest()}" for line in super().fingerprint()]


def _part(documents: Sequence[tuple[str, str]] | Sequence[Document], number: int) -> str:
    return documents[number][0]


def _text(documents: Sequence[tuple[str, str]] | Sequence[Document], number: int) -> tuple[str, int]:
    return documents[number][1], 0


class Joined(Numbered):
    """Several sources as one: the documents of the first, then those of the next, or all of them shuffled."""

    def __init__(self, name: str, sources: Sequence[Numbered]) -> None:
        self.name, self._sources = name, sources
        self._ends = list(accumulate(source.count for source in sources))
        self.count = self._ends[-1]

    def accept(self, tokenizer: Tokenizer) -> None:
        for source in self._sources:
            source.accept(tokenizer)

    def fingerprint(self) -> list[str]:
        return [line for source in self._sources for line in source.fingerprint()]

    def order(self, shuffle: int | None) -> Callable[[int], Document | Unreadable | Tokenized]:
        orders = [source.order(shuffle) for source in self._sources]
        if shuffle is None:
            starts = [0, *self._ends]

            def plain(place: int) -> Document | Unreadable | Tokenized:
                owner = bisect_right(self._ends, place)
                return orders[owner](place - starts[owner])

            return plain
        # Which source a place belongs to is shuffled; each source keeps its own order, and with it its groups.
        mixed = torch.cat([torch.full((source.count,), i) for i, source in enumerate(self._sources)])
        mixed = mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(shuffle))]
        places = torch.empty_like(mixed)
        for i, source in enumerate(self._sources):
            places[mixed == i] = torch.arange(source.count)
        owners, ranks = mixed.numpy(), places.numpy()
        return lambda place: orders[int(owners[place])](int(ranks[place]))
