"""Loss of every token of a text read as a stream, with the memory as it is and under three controls.

Special: a text of any length is read in pieces, so it costs time and not memory. Besides "frozen" (nothing is written)
and "off" (the memory gives zeros) there is "window": the memory is on, but each token is predicted from a fresh state
that read only the last tokens, as many as attention and convolutions can see. What "on" gains over it came from
farther back, and nothing but the memory can have carried it.
Source: evaluation.md section 4.5 (the history cut to the last w tokens).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.evaluation.bookmark import Bookmark
from neuralmem.generation.protocol import LanguageModel, device_of
from neuralmem.typing import MemoryMode

Reading = Literal["on", "frozen", "off", "window"]
READINGS: tuple[Reading, ...] = ("on", "frozen", "off", "window")
FIRST_BUCKET = 32  # tokens; every further one is twice as long as all before it
_LOGITS = 1 << 26  # held at once
_LEAST_STRIDE = 32  # tokens predicted by one window, at least


class Losses(NamedTuple):
    """Of every row Float32[T - 1], in nats: entry i is the loss of token i + 1; and bytes of state per row."""

    rows: list[Tensor]
    state_bytes: int


@dataclass(frozen=True)
class LossReader:
    """Reads texts into a model and says how well it predicted them.

    Args:
        model: any `LanguageModel`
        stream_chunk: tokens of a row read per call, at most
        segment: the model's layers part a text into segments of so many tokens (Titans MAC): windows begin with one
        progress: called with the number of tokens read
        bookmark: where to keep how far texts are read, so that a long reading that was stopped goes on; whoever has
            written down its losses calls `bookmark.end()`. Not used for "window", where there is no state to go on from
    """

    model: LanguageModel
    stream_chunk: int = 1024
    segment: int = 1
    progress: Callable[[int], None] = lambda tokens: None
    bookmark: Bookmark | None = None

    def readings(self) -> tuple[Reading, ...]:
        """What this model can be read under: without a memory there are no controls, with full attention no window."""
        if not getattr(self.model, "has_memory", True):
            return ("on",)
        return READINGS if self.model.reach < sys.maxsize else READINGS[:3]

    @torch.no_grad()
    def read(self, rows: Sequence[Tensor], reading: Reading = "on") -> Losses:
        """Losses of texts, each from a fresh state; its first token is given and not predicted.

        Args:
            rows: Int[T] each, at least two tokens
            reading: one of `READINGS`
        """
        return self._windows(rows) if reading == "window" else self._read(rows, reading, self.bookmark)

    def _read(self, rows: Sequence[Tensor], reading: MemoryMode, bookmark: Bookmark | None = None) -> Losses:
        lengths = torch.tensor([len(row) - 1 for row in rows])
        longest, device = int(lengths.max()), device_of(self.model)
        width = max(1, min(self.stream_chunk, _LOGITS // (len(rows) * self._vocabulary())))
        state, found, first = self.model.init_state(len(rows)), [[row.new_empty(0).float()] for row in rows], 0
        if bookmark is not None:
            hashes = (sha256(row.numpy().tobytes()).hexdigest() for row in rows)
            kept = bookmark.begin([reading, str(width), *hashes], self.model, noted=True)
            if kept.state is not None:
                state, first, before = kept.state, kept.tokens, lengths.clamp(max=kept.tokens).tolist()
                losses = torch.frombuffer(bytearray(kept.note), dtype=torch.float32)
                found = [[part.clone()] for part in losses.split(before)]
                self.progress(sum(before))
        for start in range(first, longest, width):
            stop = min(start + width, longest)
            tokens = torch.zeros(len(rows), stop - start + 1, dtype=torch.long)
            for i, row in enumerate(rows):
                piece = row[start : stop + 1]
                tokens[i, : len(piece)] = piece
            mask = torch.arange(start, stop) < lengths[:, None]
            tokens, seen = tokens.to(device), None if bool(mask.all()) else mask.to(device)
            logits, state = self.model(tokens[:, :-1], state, mask=seen, memory=reading)
            losses = F.cross_entropy(logits.float().mT, tokens[:, 1:], reduction="none").cpu()
            for i, row in enumerate(losses):
                found[i].append(row[mask[i]])
            self.progress(int(mask.sum()))
            if bookmark is not None:
                bookmark.keep(stop, state, partial(_as_bytes, found))
        return Losses([torch.cat(parts) for parts in found], state.nbytes // len(rows))

    def cost(self, tokens: int, reading: Reading) -> int:
        """Tokens that are read for the losses of a text of so many."""
        if reading != "window":
            return tokens - 1
        return sum(stop - 1 - begin for begin, _, stop in self._places(tokens))

    def _windows(self, rows: Sequence[Tensor]) -> Losses:
        """Each token from the last `reach` tokens before the one that predicts it, and up to half as many more."""
        places = [(i, *place) for i, row in enumerate(rows) for place in self._places(len(row))]
        group = max(1, len(rows) * self.stream_chunk // max(stop - begin for _, begin, _, stop in places))
        found: list[list[Tensor]] = [[] for _ in rows]
        size = 0
        for first in range(0, len(places), group):
            some = places[first : first + group]
            read, size = self._read([rows[i][begin:stop] for i, begin, _, stop in some], "on")
            for losses, (i, begin, start, _) in zip(read, some, strict=True):
                found[i].append(losses[start - 1 - begin :])
        return Losses([torch.cat(parts) for parts in found], size)

    def _places(self, length: int) -> Iterator[tuple[int, int, int]]:
        """(first token read, first token predicted, the one after the last) of every window of a text."""
        reach = self.model.reach
        stride = max(reach // 2, _LEAST_STRIDE)
        start, stop = 1, min(length, reach + stride + 1)
        while start < length:
            yield max(0, start - 1 - reach) // self.segment * self.segment, start, stop
            start, stop = stop, min(length, stop + stride)

    def _vocabulary(self) -> int:
        config = getattr(self.model, "config", None)
        return getattr(config, "vocab_size", 1)


def _as_bytes(found: Sequence[Sequence[Tensor]]) -> bytes:
    """Losses of all rows, one row after another, Float32."""
    return torch.cat([part for parts in found for part in parts]).numpy().tobytes()


def bucket_ends(length: int, anchor: int = FIRST_BUCKET) -> list[int]:
    """Ends of buckets of positions, each twice the one before; one of them ends at the anchor.

    Args:
        length: predicted tokens, the end of the last bucket
        anchor: a length at which a bucket ends, if it is no longer than the text

    Example:
        >>> bucket_ends(200), bucket_ends(1600, anchor=200)
        ([32, 64, 128, 200], [50, 100, 200, 400, 800, 1600])
    """
    first = anchor
    while first >= 2 * FIRST_BUCKET and first % 2 == 0:
        first //= 2
    ends = [min(first, length)]
    while ends[-1] < length:
        ends.append(min(length, 2 * ends[-1]))
    return ends


def bucket_means(losses: Tensor, ends: Sequence[int]) -> list[float]:
    """Mean of Float[T] over each bucket."""
    return [losses[a:b].double().mean().item() for a, b in pairwise([0, *ends])]
