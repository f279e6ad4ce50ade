"""Documents into rows of fixed length, so that memories start where documents start.

What is special: every document begins on a multiple of `align` tokens (the memory's chunk, or the segment of memory as
context), the places in between are masked, and no target crosses into another document. With `carry` a row goes on
where the same row of the batch before stopped, so a document of any length can be read with the memory carried along;
without it every row is read from a fresh memory. A saved position resumes to the token. Documents that cannot be read
are counted, warned of and left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.data.document import Tokenized, Unreadable
from neuralmem.data.faults import LONGEST, Faults, has_surrogates
from neuralmem.data.handover import hand_over
from neuralmem.data.readers import ENDLESS, reader, refuse_changed
from neuralmem.data.sources import Document, Source
from neuralmem.errors import UserError
from neuralmem.tokenizer import Tokenizer


@dataclass
class _Cursor:
    """A document being read: `tokens` is Int[N] with the separator at its end, `offset` the next token to hand out.

    `fresh`: what comes next is read from a fresh memory: a start, or the rest of what another reader has begun.
    """

    epoch: int
    number: int
    tokens: Tensor
    offset: int = 0
    fresh: bool = True


class PackedText(IterableDataset[Batch]):
    """Batches of packed documents.

    Args:
        source: where documents come from
        tokenizer: turns them into tokens; every document ends with its separator
        length: tokens per row, T
        batch_size: rows, B
        align: documents start on multiples of this many tokens of a row; `length` is one too
        carry: rows continue the same row of the batch before. `reset` is then True on true document starts only, and
            the training loop hands the state of one batch to the next. Otherwise every row starts afresh, also in the
            middle of a document, and `reset` (present where a document starts inside a row) is True on column 0 too.
        seed: order of the documents, another one in every epoch; None: as they are
        batches: stop after one pass or this many batches, whichever comes first; None: endless
        shard: (index, count) of this reader, for several devices; loader processes divide further

    Raises:
        UserError: a length that does not fit, or a source with too few documents for the number of readers and rows.

    Example:
        >>> from neuralmem.data.sources import Texts
        >>> from neuralmem.tokenizer import ByteTokenizer
        >>> source = Texts([("a", "abcde"), ("b", "xyz")])
        >>> packed = PackedText(source, ByteTokenizer(), length=12, batch_size=1, align=4, batches=1)
        >>> batch = next(iter(packed))
        >>> batch.tokens.tolist(), batch.reset.nonzero()[:, 1].tolist(), int(batch.mask.sum())
        ([[97, 98, 99, 100, 101, 256, 0, 0, 120, 121, 122, 256]], [0, 8], 10)
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        length: int,
        batch_size: int,
        align: int = 1,
        carry: bool = False,
        seed: int | None = None,
        batches: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        for name, value in (("sequence_length", length), ("batch_size", batch_size), ("align", align)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if length % align:
            near = max(align, length // align * align)
            raise UserError(
                f"sequence_length is {length}; it must be a multiple of align = {align}, for example {near}"
            )
        self.source, self.tokenizer, self.length, self.batch_size = source, tokenizer, length, batch_size
        self.align, self.carry, self.seed, self.batches, self.shard = align, carry, seed, batches, shard
        source.accept(tokenizer)
        self._next: int | None
        self._left: list[list[int]]  # documents that other readers left, as (epoch, number, offset)
        self._others: Sequence[dict[str, Any]] = ()
        self._cursors: list[_Cursor | None]
        self._resumed: bool
        self._rewind()

    def __len__(self) -> int:
        """Batches at most; 10**12 for an endless source."""
        return ENDLESS if self.batches is None else self.batches

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is not None and not self._resumed:
            self._rewind()  # a pass that was given up early does not shift the next one
        self._resumed = False
        index, count = reader(self.shard)
        self._check_enough(index, count)
        if self._others:
            position = hand_over(self._others, index, count, self.source.count)
            self.load_state_dict(position | {"cursors": [None] * len(self._cursors)})
            self._others, self._resumed = (), False
        documents = self._documents(index, count)
        while self.batches is None or self._yielded < self.batches:
            batch = self._batch(documents)
            if batch is None:
                break
            self._yielded += 1
            yield batch
        self._rewind()

    def state_dict(self) -> dict[str, Any]:
        """-> the position after the last batch, small and without text."""
        cursors = [None if cursor is None else [cursor.epoch, cursor.number, cursor.offset] for cursor in self._cursors]
        position = {"epoch": self._epoch, "next": self._next, "yielded": self._yielded, "cursors": cursors}
        if self._left:
            position["left"] = [list(one) for one in self._left]
        return position | {"faults": self.faults.to_dict(), "settings": self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; documents that were being read are read again."""
        if len(state["cursors"]) != len(self._cursors):
            raise UserError(
                f"batch_size or carry has changed: the saved position has {len(state['cursors'])} open documents, "
                f"this run {len(self._cursors)}; resume with the settings of the saved run"
            )
        refuse_changed(state.get("settings", {}), self._settings)
        if "faults" in state:
            self.faults = Faults.from_dict(state["faults"])
        self._epoch, self._next, self._yielded = state["epoch"], state["next"], state["yielded"]
        self._resumed = True
        self._left = [list(one) for one in state.get("left", ())]
        self._cursors = [None if saved is None else self._reopen(*saved) for saved in state["cursors"]]

    def take_over(self, positions: Sequence[dict[str, Any]]) -> None:
        """Go on where several readers, in this order, have stopped, whatever their number; see `hand_over`."""
        self._others = positions

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What a position hangs on."""
        return {"seed": self.seed, "tokenizer": self.tokenizer.fingerprint, "source": self.source.fingerprint()}

    def _rewind(self) -> None:
        self._epoch, self._yielded, self._resumed = 0, 0, False
        self.faults = Faults()
        self._next, self._left = None, []
        # Without carry, rows follow each other through one document; with it, every row has its own.
        self._cursors = [None] * (self.batch_size if self.carry else 1)

    def _check_enough(self, index: int, count: int) -> None:
        total = self.source.count
        if total is None or (self.batches is not None and total):
            return
        mine, rows = len(range(index, total, count)), self.batch_size if self.carry else 1
        if mine < rows:
            wanted = f"{rows} row(s) that carry memory" if self.carry else "every reader"
            raise UserError(
                f"source {self.source.name!r} has {total} document(s), too few for {count} reader(s) (devices x "
                f"num_workers) with one for {wanted}; lower batch_size or num_workers, or document_bytes"
            )

    def _shuffle(self, epoch: int) -> int | None:
        return None if self.seed is None else self.seed * 1_000_003 + epoch

    def _documents(self, index: int, count: int) -> Iterator[_Cursor]:
        """-> unread documents of this reader, one pass or endless; moves the position."""
        yield from self._left_by_others()
        while True:
            self._next = index if self._next is None else self._next
            found = self._next > index
            for document in self.source.scan(self._next, count, shuffle=self._shuffle(self._epoch)):
                number, self._next = self._next, self._next + count
                tokens = self._look(document)
                if len(tokens) > 1:
                    found = True
                    yield _Cursor(self._epoch, number, tokens)
            if not found and "corrupt" in self.faults.first:
                raise UserError(f"source {self.source.name!r} has no text: {self.faults.first['corrupt']}")
            if not found and (self.batches is None or index == 0):  # a pass may leave one of many readers with nothing
                raise UserError(f"source {self.source.name!r} has no text for reader {index + 1} of {count}")
            if self.batches is not None:
                return
            self._epoch, self._next = self._epoch + 1, index

    def _left_by_others(self) -> Iterator[_Cursor]:
        """-> what is left of documents that were being read, then documents that were not read."""
        scanned = -1  # an epoch is scanned once
        following: Iterator[tuple[int, Document | Unreadable | Tokenized]] = iter(())
        while self._left:
            epoch, number, offset = self._left.pop(0)
            if offset:
                yield replace(self._reopen(epoch, number, offset), fresh=True)
                continue
            if scanned != epoch:
                following = enumerate(self.source.scan(number, shuffle=self._shuffle(epoch)), number)
                scanned = epoch
            tokens = self._look(next((one for place, one in following if place == number), None))
            if len(tokens) > 1:
                yield _Cursor(epoch, number, tokens)

    def _tokens(self, document: Document | Unreadable | Tokenized | None) -> Tensor:
        if isinstance(document, Tokenized):
            return document.tokens
        if not isinstance(document, Document):
            return torch.empty(0, dtype=torch.long)
        end, text = torch.tensor([self.tokenizer.eos_id]), document.text
        if len(text) <= LONGEST:
            (ids,) = self.tokenizer.encode_batch([text])
            return torch.cat([ids.long(), end])
        # In pieces, and half as large in memory: the tokenizer needs many times the text's size.
        pieces = [
            self.tokenizer.encode_batch([text[at : at + LONGEST]])[0].int() for at in range(0, len(text), LONGEST)
        ]
        return torch.cat([*pieces, end.int()])

    def _look(self, document: Document | Unreadable | Tokenized | None) -> Tensor:
        """-> the tokens of a document; keeps an account of what is wrong with it."""
        tokens = self._tokens(document)
        self.faults.look()
        if isinstance(document, Unreadable):
            self.faults.unreadable(document)
            self.faults.warn()
        elif document is not None and len(tokens) <= 1:
            self.faults.note("empty", document.id)
        elif isinstance(document, Document) and (document.replaced or has_surrogates(document.text)):
            self.faults.note("not_utf8", document.id)
        if isinstance(document, Document) and len(document.text) > LONGEST:
            self.faults.note("huge", document.id)
        return tokens

    def _reopen(self, epoch: int, number: int, offset: int) -> _Cursor:
        tokens = self._tokens(next(iter(self.source.scan(number, 1, shuffle=self._shuffle(epoch))), None))
        if offset >= len(tokens):
            raise UserError(f"source {self.source.name!r} has changed since the position to resume from was saved")
        return _Cursor(epoch, number, tokens, offset, fresh=offset == 0)

    def _batch(self, documents: Iterator[_Cursor]) -> Batch | None:
        """-> the next batch, or None where nothing is left to read."""
        shape = self.batch_size, self.length
        tokens = torch.zeros(shape, dtype=torch.long)
        targets = torch.full(shape, NO_LOSS)
        mask, reset = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row in range(self.batch_size):
            self._fill(row % len(self._cursors), documents, tokens[row], targets[row], mask[row], reset[row])
        if not mask.any():
            return None
        rows = slice(None) if self.carry else mask.any(1)  # a last batch may have fewer rows, unless rows carry state
        tokens, targets, mask, reset = tokens[rows], targets[rows], mask[rows], reset[rows]
        starts = reset if self.carry else reset[:, 1:]
        if not self.carry:
            reset[:, 0] = True
        return Batch(
            tokens, targets, mask=None if bool(mask.all()) else mask, reset=reset if bool(starts.any()) else None
        )

    def _fill(
        self, slot: int, documents: Iterator[_Cursor], tokens: Tensor, targets: Tensor, mask: Tensor, reset: Tensor
    ) -> None:
        """Fill one row, Int[T] and Bool[T], from the slot's document and those after it."""
        place = 0
        while place < self.length:
            cursor = self._cursors[slot] or next(documents, None)
            if cursor is None:
                return
            start, stop = cursor.offset, min(cursor.offset + self.length - place, len(cursor.tokens))
            here = slice(place, place + stop - start)
            tokens[here], mask[here], reset[place] = cursor.tokens[start:stop], True, cursor.fresh
            following = cursor.tokens[start + 1 : stop + 1]
            targets[place : place + len(following)] = following
            place, cursor.offset, cursor.fresh = here.stop, stop, False
            finished = stop == len(cursor.tokens)
            self._cursors[slot] = None if finished else cursor
            if finished:
                place = -(-place // self.align) * self.align
