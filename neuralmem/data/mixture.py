"""Several sources mixed by weight.

What is special: weights are shares of the text, not of the documents, so that a source of books does not drown one of
web pages; the mix is exact in every block of places, and any place is found without counting from the first, so that a
resume is exact and costs nothing. A source that is finished begins again in another order.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

from neuralmem.data.document import Document, Numbered, Source, Tokenized, Unreadable
from neuralmem.errors import UserError
from neuralmem.tokenizer import Tokenizer

BLOCK = 4096  # places in which every source has exactly its share of the documents


class Mixture(Source):
    """An endless source.

    Args:
        sources: by name
        weights: share of the text of each, in any unit; the average length of its documents is taken from a sample (of
            shards it is known)

    Raises:
        UserError: a weight that is not positive, text mixed with shards, or more sources than places.

    Example:
        >>> from neuralmem.data.document import Texts
        >>> books, pages = Texts([("book", "b" * 90)]), Texts([("page", "p" * 10)])
        >>> mixed = Mixture({"books": books, "pages": pages}, {"books": 0.5, "pages": 0.5})
        >>> some = [document.text[0] for document, _ in zip(mixed.read(shuffle=0), range(4096))]
        >>> some.count("p") / some.count("b")  # nine pages to a book, for half of the text each
        8.990243902439024
    """

    count = None

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if not weight > 0:
                raise UserError(f"source has weight {weight} for {name!r}; it must be above 0")
        if not 0 < len(sources) <= BLOCK // 4:
            raise UserError(f"source has {len(sources)} weights; it must have 1 to {BLOCK // 4}")
        self.name = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
        self._sources = list(sources.values())
        if len({hasattr(source, "manifest") for source in self._sources}) > 1:
            raise UserError(f"source is {self.name}; shards cannot be mixed with text, only with shards")
        wanted = np.array([weights[name] / source.mean_length() for name, source in sources.items()])
        self._quota = _whole(wanted / wanted.sum() * BLOCK)

    def accept(self, tokenizer: Tokenizer) -> None:
        for source in self._sources:
            source.accept(tokenizer)

    def fingerprint(self) -> list[str]:
        parts = [line for source in self._sources for line in source.fingerprint()]
        return [f"{self._quota.tolist()} of {BLOCK} documents", *parts]

    def scan(
        self, start: int = 0, step: int = 1, *, shuffle: int | None = None
    ) -> Iterator[Document | Unreadable | Tokenized]:
        readers = [_Again(source, shuffle, number) for number, source in enumerate(self._sources)]
        owners = lru_cache(2)(lambda block: _block(self._quota, shuffle, block))
        place = start
        while True:
            block, inside = divmod(place, BLOCK)
            owner, rank = owners(block)
            mine = int(owner[inside])
            yield readers[mine](block * int(self._quota[mine]) + int(rank[inside]))
            place += step


def _whole(shares: np.ndarray) -> np.ndarray:
    """-> shares of BLOCK as whole numbers with that sum, each at least 1: largest remainders are rounded up."""
    left = shares * (BLOCK - len(shares)) / BLOCK  # one place is everybody's
    found = 1 + np.floor(left).astype(np.int64)
    found[np.argsort(np.floor(left) - left, kind="stable")[: BLOCK - int(found.sum())]] += 1
    return found


def _block(quota: np.ndarray, shuffle: int | None, block: int) -> tuple[np.ndarray, np.ndarray]:
    """-> Int[BLOCK] source of every place of a block, and how many places of the block that source had before."""
    chance = np.random.default_rng([0 if shuffle is None else shuffle % (1 << 63), block])
    owner = chance.permutation(np.repeat(np.arange(len(quota)), quota))
    rank = np.empty(BLOCK, dtype=np.int64)
    for source in range(len(quota)):
        here = owner == source
        rank[here] = np.arange(int(here.sum()))
    return owner, rank


class _Again:
    """Document number k of a source that begins again, in another order, whenever it is finished.

    Args:
        source: what is read
        shuffle: of the mixture; None: the source's own order, every time
        number: of the source in the mixture
    """

    def __init__(self, source: Source, shuffle: int | None, number: int) -> None:
        self.source, self.shuffle, self.number = source, shuffle, number
        self._orders = lru_cache(1)(lambda seed: source.order(seed))  # type: ignore[attr-defined]
        self._stream: Iterator[Document | Unreadable | Tokenized] | None = None
        self._epoch = self._next = 0

    def __call__(self, k: int) -> Document | Unreadable | Tokenized:
        if isinstance(self.source, Numbered):
            epoch, place = divmod(k, self.source.count)
            return self._orders(self._seed(epoch))(place)
        while True:  # a stream is read up to there; k only grows
            if self._stream is None:
                self._stream = self.source.scan(shuffle=self._seed(self._epoch))
            found = next(self._stream, None)
            if found is None:
                if not self._next:
                    raise UserError(f"source {self.source.name!r} is empty; it must hold at least one document")
                self._stream, self._epoch = None, self._epoch + 1
                continue
            self._next += 1
            if self._next > k:
                return found

    def _seed(self, epoch: int) -> int | None:
        return None if self.shuffle is None else self.shuffle * 1_000_003 + epoch * 1009 + self.number
