"""Documents to tokens in several processes, in the order of the documents whatever the number of processes.

Where documents have numbers, workers get numbers and read for themselves; those of a stream are read here and sent.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

import numpy as np

from neuralmem.data.document import Document, Numbered, Source, Tokenized, Unreadable, key_hash
from neuralmem.data.faults import has_surrogates
from neuralmem.data.shard_files import Piece
from neuralmem.errors import UserError
from neuralmem.tokenizer import Tokenizer

_DOCUMENTS = 128  # of the source in one piece of work
_CHARACTERS = 1 << 22  # of a stream in one piece of work, but for its last document
_TOGETHER = 1 << 20  # characters that the tokenizer gets at once

Work = tuple[int, int] | list[Document | Unreadable | Tokenized]


class Encode:
    """Work to tokens, in a worker or here.

    Args:
        source: the documents
        tokenizer: what encodes them
        kind: "uint16" or "uint32"
        longest: characters of a document
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, kind: str, longest: int) -> None:
        self.source, self.tokenizer, self.kind, self.longest = source, tokenizer, kind, longest

    def pieces(self, start: int, stop: int | None, processes: int) -> Iterator[Piece]:
        """-> documents `start` to `stop` as tokens, in their order."""
        work = self._work(start, stop)
        if processes == 1:
            yield from map(self, work)
            return
        context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
        # A numbered source goes to the workers once; the documents of a stream follow one by one.
        light = Encode(self.source, self.tokenizer, self.kind, self.longest)
        if not isinstance(self.source, Numbered):
            light.source = _NOTHING
        with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(light,)) as pool:
            waiting: deque[Future[Piece]] = deque()
            try:
                for some in work:
                    waiting.append(pool.submit(_run, some))
                    if len(waiting) > 2 * processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool:
                raise UserError("a worker process died, perhaps for want of memory; use fewer --processes") from None
            finally:
                pool.shutdown(cancel_futures=True)

    def _work(self, start: int, stop: int | None) -> Iterator[Work]:
        if isinstance(self.source, Numbered):
            last = min(stop or self.source.count, self.source.count)
            yield from ((at, min(at + _DOCUMENTS, last)) for at in range(start, last, _DOCUMENTS))
            return
        some: list[Document | Unreadable | Tokenized] = []
        size = 0
        for document in islice(self.source.scan(start), None if stop is None else stop - start):
            some.append(document)
            size += len(document.text) if isinstance(document, Document) else 0
            if len(some) >= _DOCUMENTS or size >= _CHARACTERS:
                yield some
                some, size = [], 0
        if some:
            yield some

    def __call__(self, work: Work) -> Piece:
        documents = self._read(work)
        found = [self._texts(document) for document in documents]
        encoded = self._encoded([text for texts, _ in found for text in texts])
        kept: list[np.ndarray] = []
        hashes, parts, faults = [], [], []
        for number, (document, (texts, wrong)) in enumerate(zip(documents, found, strict=True)):
            ids = [some for some in islice(encoded, len(texts)) if len(some)]
            if texts and not ids:
                wrong = [*wrong, ("empty", document.id)]  # a tokenizer may leave nothing of white space
            kept += ids
            hashes += [key_hash(getattr(document, "key", "") or document.id)] * len(ids)
            parts.append(len(ids))
            faults += [(number, kind, place) for kind, place in wrong]
        lengths = np.array([len(some) + 1 for some in kept], dtype=np.int64)
        tokens = self._joined(kept)
        return Piece(tokens, lengths, np.array(hashes, dtype=np.uint64), np.array(parts, dtype=np.int64), tuple(faults))

    def _joined(self, kept: Sequence[np.ndarray]) -> np.ndarray:
        """-> Int[N] all tokens, a separator behind each document's."""
        kind = np.dtype(self.kind).newbyteorder("<")
        end = np.array([self.tokenizer.eos_id], dtype=kind)
        parts = [part for some in kept for part in (some, end)]
        return np.concatenate(parts, dtype=kind, casting="unsafe") if parts else end[:0]

    def _read(self, work: Work) -> Sequence[Document | Unreadable | Tokenized]:
        if not isinstance(work, tuple):
            return work
        assert isinstance(self.source, Numbered)
        with warnings.catch_warnings(action="ignore"):  # what is not UTF-8 is counted
            return list(map(self.source.order(None), range(*work)))

    def _texts(self, document: Document | Unreadable | Tokenized) -> tuple[list[str], list[tuple[str, str]]]:
        """-> what a document becomes, and what is wrong with it."""
        if isinstance(document, Tokenized):
            raise UserError(f"source {self.source.name!r} holds tokens already")
        if isinstance(document, Unreadable):
            return [], [("corrupt", document.error)]
        if not document.text:
            return [], [("empty", document.id)]
        wrong = [("not_utf8", document.id)] if document.replaced or has_surrogates(document.text) else []
        if len(document.text) <= self.longest:
            return [document.text], wrong
        starts = range(0, len(document.text), self.longest)
        return [document.text[at : at + self.longest] for at in starts], [*wrong, ("huge", document.id)]

    def _encoded(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """-> Int[N] tokens of every text."""
        for some in _together(texts):
            yield from (ids.numpy() for ids in self.tokenizer.encode_batch(some))


def _together(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in groups that bound the memory of the tokenizer."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > _TOGETHER:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


class _Nothing(Source):
    """What a worker has whose documents are sent to it."""

    name, count = "a stream", 0

    def scan(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document]:
        return iter(())


_NOTHING = _Nothing()
_encode: Encode | None = None


def _start(encode: Encode) -> None:
    """Set up a worker, which ends with this process and leaves Ctrl-C to it."""
    global _encode
    _encode = encode
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process per core, not a thread per core in each
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # type: ignore[union-attr]


def _run(work: Work) -> Piece:
    assert _encode is not None
    return _encode(work)
