"""What a call means for mini-batches whose update waits for the token after them.

Special: a grid ends a unit with its last token; here a complete mini-batch remains the unfinished one until the next
token is read, since that is the target of its last. A document that ends before that never updates.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from neuralmem.modules.grid import Grid
from neuralmem.modules.stream import expand_index
from neuralmem.typing import Tensor


@dataclass(frozen=True)
class Plan:
    """What happens in each of the G / b mini-batches of a grid.

    Args:
        taken: Bool [B, G], slots with a token
        begins: Bool [B, G / b], a document starts
        due: Bool [B, G / b], complete, and the token after it has been read
        last: Bool [B, G / b], the row's last, whose update is still to come
        first: Int [B], the first slot of that one
        left: Int [B], its tokens
        width: b
        full, learns, ends: for each mini-batch, whether all rows are taken, any is due, any is last; on the host
    """

    taken: Tensor
    begins: Tensor
    due: Tensor
    last: Tensor
    first: Tensor
    left: Tensor
    width: int
    full: list[bool]
    learns: list[bool]
    ends: list[bool]

    @classmethod
    def of(cls, grid: Grid) -> "Plan":
        """The plan of a call; one look at the device."""
        size = grid.unit
        # A complete mini-batch stays the unfinished one until the next token comes.
        waits = (grid.end == grid.complete) & (grid.end > 0)
        first = grid.complete - size * waits
        at = torch.arange(0, grid.size, size, device=first.device)
        taken, begins = grid.taken(), grid.starts[:, ::size]
        due = (at < first[:, None]) & ~F.pad(begins[:, 1:], (0, 1))  # what a document leaves unfinished is dropped
        last = at == first[:, None]
        marks = taken.unflatten(1, (-1, size)).all(2).all(0), due.any(0), last.any(0)
        full, learns, ends = torch.stack(marks).tolist()
        return cls(taken, begins, due, last, first, grid.end - first, size, full, learns, ends)

    def tail(self, x: Tensor) -> Tensor:
        """Each row's last mini-batch: [B, G, ...] -> [B, b, ...], zeros where it has no token."""
        place = torch.arange(self.width, device=x.device)
        index = (self.first[:, None] + place).clamp(max=x.shape[1] - 1)
        empty = (place >= self.left[:, None]).view(*index.shape, *[1] * (x.ndim - 2))
        return x.gather(1, expand_index(index, x)).masked_fill(empty, 0)
