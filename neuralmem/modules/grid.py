"""Rows of tokens laid out in whole units: the chunks of a memory, the segments of MAC.

Special: a unit that an earlier call left unfinished is continued, a document starts a new unit, and rows may differ in
all of that. The layout turns any of it into a plain [B, slots] grid with a mask, which is what the ops read.
"""

from dataclasses import dataclass

import torch

from neuralmem.modules.stream import Rows, expand_index
from neuralmem.typing import Tensor


@dataclass(frozen=True)
class Grid:
    """Where tokens stand. Slots are counted from the start of the unit that the state left unfinished.

    Args:
        unit: tokens per unit
        slot: Int [B, T], each token's slot; `size` for what is not real
        size: slots, a multiple of the unit
        filled: Int [B], slots taken by the unfinished unit before this call
        end: Int [B], one past each row's last taken slot
        complete: Int [B], slots before each row's unfinished unit
        starts: Bool [B, size], a document starts at this slot
        restarted: Bool [B], the unfinished unit belongs to a document that started in this call
    """

    unit: int
    slot: Tensor
    size: int
    filled: Tensor
    end: Tensor
    complete: Tensor
    starts: Tensor
    restarted: Tensor

    def place(self, x: Tensor, front: Tensor | None = None) -> Tensor:
        """Tokens [B, T, ...] to slots [B, size, ...]; `front` [B, F, ...] is what the first had; zeros elsewhere."""
        slot = self.slot
        if front is not None:
            index = torch.arange(front.shape[1], device=x.device)
            slot = torch.cat([torch.where(index < self.filled[:, None], index, self.size), slot], dim=1)
            x = torch.cat([front.to(x.dtype), x], dim=1)
        placed = x.new_zeros(len(x), self.size + 1, *x.shape[2:])
        return placed.scatter(1, expand_index(slot, x), x)[:, : self.size]

    def take(self, y: Tensor) -> Tensor:
        """Slots [B, size, ...] to tokens [B, T, ...]."""
        if self.size == 0:
            return y.new_zeros(*self.slot.shape, *y.shape[2:])
        return y.gather(1, expand_index(self.slot.clamp(max=self.size - 1), y))

    def real(self) -> Tensor:
        """Bool [B, size]: slots with a token of this call."""
        return self.place(torch.ones_like(self.slot, dtype=torch.bool)[..., None])[..., 0]

    def taken(self) -> Tensor:
        """Bool [B, size]: slots with a token of this call or of the unfinished unit before it."""
        index = torch.arange(self.size, device=self.slot.device)
        return self.real() | (index < self.filled[:, None])

    def tail(self, width: int) -> Tensor:
        """Int [B, width], the slots of each row's unfinished unit, clamped to the grid."""
        index = self.complete[:, None] + torch.arange(width, device=self.slot.device)
        return index.clamp(max=max(self.size - 1, 0))


def lay_out(rows: Rows, shape: tuple[int, int], filled: Tensor, unit: int) -> Grid:
    """The grid of a call. shape: (B, T); filled: Int [B], tokens in the unit that the state left unfinished.

    Example:
        >>> reset = torch.tensor([[False, False, True, False]])
        >>> grid = lay_out(Rows(reset=reset), (1, 4), torch.tensor([1]), unit=4)
        >>> grid.slot, grid.size, grid.complete
        (tensor([[1, 2, 4, 5]]), 8, tensor([4]))
    """
    B, T = shape
    real = rows.mask if rows.mask is not None else torch.ones(B, T, dtype=torch.bool, device=filled.device)
    document = rows.document if rows.document is not None else torch.zeros(B, T, dtype=torch.long, device=filled.device)
    documents = 1 if rows.document is None or not document.numel() else int(document.max()) + 1
    new = torch.zeros(B, documents, dtype=torch.long, device=filled.device).scatter_add(1, document, real.long())
    count = torch.cat([new[:, :1] + filled[:, None], new[:, 1:]], dim=1)  # tokens of each document on the grid
    span = (count + unit - 1) // unit * unit
    start = span.cumsum(1) - span
    # A document's tokens are consecutive: its slot is its start, plus the token's rank in it.
    rank = torch.arange(T, device=filled.device) - (new.cumsum(1) - new).gather(1, document)
    slot = start.gather(1, document) + rank + torch.where(document == 0, filled[:, None], 0)
    last = (document * real).amax(1, keepdim=True) if T else torch.zeros(B, 1, dtype=torch.long, device=filled.device)
    end, complete = ((start + x).gather(1, last)[:, 0] for x in (count, count // unit * unit))
    size = -(-int(end.max()) // unit) * unit if B else 0
    begun = (torch.arange(documents, device=filled.device) > 0) & (
        torch.arange(documents, device=filled.device) <= last
    )
    starts = torch.zeros(B, size + 1, dtype=torch.bool, device=filled.device)
    starts = starts.scatter(1, torch.where(begun, start, size), True)[:, :size]
    restarted = (last[:, 0] > 0) & (complete == start.gather(1, last)[:, 0])
    return Grid(unit, torch.where(real, slot, size), size, filled, end, complete, starts, restarted)
