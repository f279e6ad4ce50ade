"""How a call of any length meets the chunks of a memory: from a start, one token in an unfinished chunk, or on a grid.

Special: a chunk's gradients are anchored at its first weights, so the state keeps the weights as of the last chunk
start and what the unfinished chunk would write. A call puts that in front of its own tokens, runs the complete chunks,
then the rest, whose weights are dropped. Any cut of a text into calls is therefore the same computation.
"""

from abc import abstractmethod

import torch
from torch.nn import functional as F

from neuralmem.config import MemoryConfig
from neuralmem.modules.grid import Grid, lay_out
from neuralmem.modules.stream import Rows, Stream, expand_index
from neuralmem.ops import where_rows
from neuralmem.typing import Tensor, Tensors

Fast = tuple[Tensors, Tensors]
"""Weights and momentum."""
Kept = tuple[Tensors, Tensors, Tensors, Tensor]
"""The fields of a MemoryState that reading changes: weights, momentum, pending, filled."""


class Chunks(Stream):
    """A stream whose tokens are written a chunk at a time. q, keys and values are [B, T, H, D], gates [B, T, H]."""

    config: MemoryConfig

    @abstractmethod
    def fast(self, batch_size: int) -> Fast:
        """The initial weights and momentum for every sample: [B, H, D_out, D_in] in the state's dtype."""

    @abstractmethod
    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        """Read and write whole chunks from a chunk start. q: [B, T, H, D]; written: keys, values, then the gates."""

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        """Read one query per sample at the weights that an unfinished chunk would leave, [B, 1, H, D] -> the same.

        Args:
            q: [B, 1, H, D]
            written: the chunk's tokens from its start on, [B, n, ...] each, n at least 1
            fast: weights and momentum at the chunk's start
            write_mask: Bool [B, n], which of them there are
        """
        # The last row of an update; a rule that can read without writing overrides this.
        y, _ = self.update(F.pad(q, (0, 0, 0, 0, write_mask.shape[1] - 1, 0)), written, fast, write_mask, None)
        return y[:, -1:]

    def read_and_write(self, q: Tensor, written: Tensors, kept: Kept, rows: Rows, fresh: bool) -> tuple[Tensor, Kept]:
        """Read every token and write those that complete a chunk; the others wait. `fresh`: nothing was read before."""
        if fresh and rows.plain:
            return self._from_start(q, written, kept)
        if longest := self._after_decoding(kept[3], rows, q.shape[1]):
            return self._decode(q, written, kept, rows, longest)
        return self._on_grid(q, written, kept, rows)

    def _from_start(self, q: Tensor, written: Tensors, kept: Kept) -> tuple[Tensor, Kept]:
        """A call that starts on the grid: complete chunks, then the rest."""
        total, size = q.shape[1], self.config.chunk_size
        whole = total // size * size
        fast: Fast = kept[:2]
        outputs = []
        if whole:
            y, fast = self.update(q[:, :whole], tuple(w[:, :whole] for w in written), fast, None, None)
            outputs.append(y)
        rest = tuple(w[:, whole:] for w in written)
        if total > whole:
            outputs.append(self.update(q[:, whole:], rest, fast, None, None)[0])
        pending = tuple(self._pad(w) for w in rest)
        y = torch.cat(outputs, dim=1) if outputs else torch.empty_like(q)
        return y, (*fast, pending, torch.full_like(kept[3], total - whole))

    def _after_decoding(self, filled: Tensor, rows: Rows, tokens: int) -> int:
        """The most tokens of an unfinished chunk after a call that reads at most one per row and ends no chunk; else 0.

        Asks the device once: a stream does so for every token and layer.
        """
        limit = self.config.chunk_size - 1
        if rows.reset is not None or not tokens or not len(filled) or (rows.mask is None and tokens > 1):
            return 0
        if rows.mask is None:
            longest = int(filled.max()) + 1
        else:
            new = rows.mask.sum(1)
            longest = max(int(torch.where(new > 1, limit + 1, filled + new).max()), 1)
        return longest if longest <= limit else 0

    def _decode(self, q: Tensor, written: Tensors, kept: Kept, rows: Rows, longest: int) -> tuple[Tensor, Kept]:
        """A call of one token, the first of each row, in an unfinished chunk: it is read, and waits with the others."""
        weights, momentum, pending, before = kept
        real = rows.mask[:, 0] if rows.mask is not None else torch.ones_like(before, dtype=torch.bool)
        index, filled = torch.arange(self.config.chunk_size - 1, device=q.device), before + real
        here = (index == before[:, None]) & real[:, None]
        pending = tuple(
            torch.where(here.view(*here.shape, *[1] * (old.ndim - 2)), new[:, :1].to(old.dtype), old)
            for new, old in zip(written, pending, strict=True)
        )
        taken = (index < filled[:, None])[:, :longest]
        y = self.read_unfinished(q[:, :1], tuple(p[:, :longest] for p in pending), (weights, momentum), taken)
        return F.pad(y, (0, 0, 0, 0, 0, q.shape[1] - 1)), (weights, momentum, pending, filled)

    def _on_grid(self, q: Tensor, written: Tensors, kept: Kept, rows: Rows) -> tuple[Tensor, Kept]:
        """A call that goes on in a chunk, or whose rows differ."""
        grid = lay_out(rows, (q.shape[0], q.shape[1]), kept[3], self.config.chunk_size)
        q = grid.place(q)
        written = tuple(grid.place(w, front) for w, front in zip(written, kept[2], strict=True))
        fast: Fast = kept[:2]
        index, y = torch.arange(grid.size, device=q.device), torch.zeros_like(q)
        whole = int(grid.complete.max()) if grid.size else 0
        if whole:
            write = (grid.taken() & (index < grid.complete[:, None]))[:, :whole]
            starts = grid.starts[:, :whole] if rows.reset is not None else None
            head, fast = self.update(q[:, :whole], tuple(w[:, :whole] for w in written), fast, write, starts)
            y = torch.cat([head, y[:, whole:]], dim=1)
        if rows.reset is not None:
            fast = self._restart(grid.restarted, fast)
        tail, pending = self._tail(grid, q, written, fast, y)
        return grid.take(tail), (*fast, pending, grid.end - grid.complete)

    def _restart(self, rows: Tensor, fast: Fast) -> Fast:
        weights, momentum = self.fast(len(rows))
        return where_rows(rows, weights, fast[0]), where_rows(rows, momentum, fast[1])

    def _tail(self, grid: Grid, q: Tensor, written: Tensors, fast: Fast, y: Tensor) -> tuple[Tensor, Tensors]:
        """Read each row's unfinished chunk. Returns the grid's outputs with it, and what it would write."""
        longest = int((grid.end - grid.complete).max()) if grid.size else 0
        slots = grid.tail(longest)
        taken = grid.complete[:, None] + torch.arange(longest, device=q.device) < grid.end[:, None]

        def pick(x: Tensor) -> Tensor:
            picked = x.gather(1, expand_index(slots, x))
            return picked.masked_fill(~taken.view(*taken.shape, *[1] * (x.ndim - 2)), 0)

        rest = tuple(pick(w) for w in written)
        if longest:
            read, _ = self.update(pick(q), rest, fast, taken, None)
            at = torch.where(taken, slots, grid.size)
            read = read.to(y.dtype)  # under autocast the update's dtype is not its input's
            y = F.pad(y, (0, 0, 0, 0, 0, 1)).scatter(1, expand_index(at, read), read)[:, : grid.size]
        return y, tuple(self._pad(w) for w in rest)

    def _pad(self, written: Tensor) -> Tensor:
        """What an unfinished chunk writes, [B, tokens, ...], to the state's [B, chunk_size - 1, ...]."""
        room = self.config.chunk_size - 1 - written.shape[1]
        return F.pad(written, (0, 0) * (written.ndim - 2) + (0, room)).to(self.state_dtype)
