"""Masks and document starts, handled in one place: every module that keeps a state is a `Stream`.

Special: whatever mask the outermost call gets (pads left, right or between), its real tokens are moved to the left
once; everything inside sees rows of real tokens that may end early. That is why padding changes nothing.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from neuralmem.errors import UserError
from neuralmem.ops.checks import check_mask
from neuralmem.state import State
from neuralmem.typing import MemoryMode, Tensor

MODES = ("on", "frozen", "off")


@dataclass(frozen=True)
class Rows:
    """B rows of T places, of which only the first so many may be real tokens.

    Args:
        mask: Bool [B, T], True for each row's real tokens, all to the left; None when every token is real
        reset: Bool [B, T], True on a document's first token; None when no document starts

    Attributes:
        document: Int [B, T], 0 for the document that the state continues, then 1, 2, ...; None when no document starts

    Example:
        >>> Rows(reset=torch.tensor([[False, True, False, True]])).document
        tensor([[0, 1, 1, 2]])
    """

    mask: Tensor | None = None
    reset: Tensor | None = None
    document: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        # Not a cached_property: its lock breaks the graph of torch.compile.
        object.__setattr__(self, "document", None if self.reset is None else self.reset.cumsum(1))

    @property
    def plain(self) -> bool:
        """Every token is real and no document starts: nothing to take care of."""
        return self.mask is None and self.reset is None

    def last(self, past: Tensor, x: Tensor) -> Tensor:
        """The last K real items of every row. past: [B, K, ...], x: [B, T, ...] -> [B, K, ...]."""
        size, total = past.shape[1], x.shape[1]
        if self.mask is None:
            # Joined after cutting: a view of everything read would keep it alive for as long as the state.
            return torch.cat([past[:, min(total, size) :], x[:, max(total - size, 0) :]], dim=1)
        joined = torch.cat([past, x], dim=1)
        index = self.mask.sum(1, keepdim=True) + torch.arange(size, device=x.device)
        return joined.gather(1, expand_index(index, joined))

    def carried(self, filled: Tensor, total: int, limit: int) -> Tensor:
        """How many of the last `limit` items belong to the row's last document, given Int [B] of before."""
        if self.reset is None:
            count = filled + (total if self.mask is None else self.mask.sum(1))
        else:
            real = self.mask if self.mask is not None else torch.ones_like(self.reset)
            last = self.reset.sum(1, keepdim=True)
            count = (real & (self.document == last)).sum(1) + torch.where(last[:, 0] == 0, filled, 0)
        return count.clamp(max=limit)


def expand_index(index: Tensor, x: Tensor) -> Tensor:
    """Int [B, T] as an index for `gather` along dim 1 of x [B, *, ...]."""
    return index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:])


class Stream(nn.Module, ABC):
    """A module that reads a stream of tokens and keeps a state.

    Subclasses write `init_state` and `advance`; callers use the module, which takes care of masks.
    """

    has_memory = False

    @abstractmethod
    def init_state(self, batch_size: int) -> State:
        """The state before the first token."""

    @abstractmethod
    def advance(self, x: Tensor, state: Any, rows: Rows, memory: MemoryMode) -> tuple[Tensor, Any]:
        """Read left-aligned rows. `state` None is a fresh one, and lets fast paths skip the state's bookkeeping."""

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        memory: MemoryMode = "on",
        rows: Rows | None = None,
    ) -> tuple[Tensor, Any]:
        """Read tokens.

        Args:
            x: [B, T, ...]
            state: what was read before, or None
            mask: Bool [B, T], True for real tokens; the others change nothing and give zeros
            reset: Bool [B, T], True on a document's first token: it is read as by a fresh state
            memory: "on"; "frozen": nothing is written, reads see the initial weights; "off": the memory gives zeros
            rows: x is left-aligned already; for modules that call modules, instead of mask and reset

        Returns:
            Output [B, T, ...] and the state after the last token.

        Raises:
            UserError: shapes that do not fit, or a state of another batch size.
        """
        if rows is not None:
            return self.advance(x, state, rows, memory)
        self._check(x, state, mask, reset, memory)
        if mask is None:
            return self.advance(x, state, Rows(None, reset), memory)
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)  # real tokens first
        reset = None if reset is None else (reset & mask).gather(1, order)
        rows = Rows(mask.gather(1, order), reset)
        y, state = self.advance(x.gather(1, expand_index(order, x)), state, rows, memory)
        back = torch.argsort(order, dim=1)
        y = y.gather(1, expand_index(back, y))
        return y.masked_fill(~mask.view(*mask.shape, *[1] * (y.ndim - 2)), 0), state

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def state_dtype(self) -> torch.dtype:
        """At least fp32, whatever the parameters are."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def _check(self, x: Tensor, state: Any, mask: Tensor | None, reset: Tensor | None, memory: str) -> None:
        check_mask("mask", mask, x.shape[:2])
        check_mask("reset", reset, x.shape[:2])
        if memory not in MODES:
            raise UserError(f"memory is {memory!r}; it must be one of {', '.join(MODES)}")
        if state is not None:
            size = len(next(t for _, t in state.items()))
            if size != len(x):
                raise UserError(
                    f"batch size is {len(x)}, but the state has {size} rows; use state.select or a new state"
                )
