"""Causal multi-head attention, full or in a sliding window, with persistent tokens and a cache as state.

Special: the cache keeps keys before their rotation; positions are relative to the call, so a stream of any length is as
precise as its first tokens. Persistent tokens (Titans 3.3) are learned keys and values without a position that every
query sees; they are never written to a memory. How the attention itself runs is decided in `ops/attention`.
"""

from dataclasses import dataclass
from typing import Self

import torch
from einops import rearrange
from torch import nn

from neuralmem.config import AttentionConfig
from neuralmem.errors import UserError
from neuralmem.modules.init import start_small
from neuralmem.modules.stream import Rows, Stream
from neuralmem.ops.attention import attend, attend_segment
from neuralmem.state import State
from neuralmem.typing import MemoryMode, Tensor, Tensors


@dataclass(frozen=True)
class AttentionState(State):
    """The last keys and values, the most recent at the end: 2 * (window - 1) * N D numbers and an integer per sample.

    Args:
        keys: [B, K, N, D], not rotated; K is window - 1, or with full attention everything read
        values: [B, K, N, D]
        filled: Int [B], how many of them belong to the current document
    """

    keys: Tensor
    values: Tensor
    filled: Tensor

    def without_context(self) -> Self:
        """Nothing is seen any more; full attention keeps the room of what it saw, empty."""
        return self.map(torch.zeros_like)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, N * D] -> [B, T, N, D]."""
    return rearrange(x, "b t (n d) -> b t n d", n=heads)


class PersistentTokens(nn.Module):
    """Learned keys and values [P, N, D] that every query sees (Titans 2501.00663 Eq. 19)."""

    def __init__(self, count: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(count, heads, head_width))
        self.values = nn.Parameter(torch.randn(count, heads, head_width) / head_width**0.5)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class MultiHead(nn.Module):
    """The weights that every attention has.

    Args:
        width: of the residual stream
        config: heads, window, persistent tokens, base of the rotation, backend

    Raises:
        UserError: the heads do not divide the width into heads of even width.
    """

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__()
        if width % config.heads or width // config.heads % 2:
            raise UserError(f"attention.heads is {config.heads}; it must divide width {width} into heads of even width")
        self.config = config
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = start_small(nn.Linear(width, width, bias=False))
        count = config.persistent_tokens
        self.persistent = PersistentTokens(count, config.heads, width // config.heads) if count else None

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x [B, T, width], [B, T, N, D] each."""
        return split_heads(self.key(x), self.config.heads), split_heads(self.value(x), self.config.heads)


class SegmentAttention(MultiHead):
    """Attention within a segment, to what a memory recalled for it and to its tokens (Titans 2501.00663 Eq. 21-23)."""

    def empty(self, batch_size: int, size: int) -> Tensors:
        """Keys and values of `size` tokens and of what was recalled for them: zeros [B, size, N, D], four of them."""
        heads = self.config.heads
        shape = (batch_size, size, heads, self.key.out_features // heads)
        return tuple(self.key.weight.new_zeros(shape) for _ in range(4))

    def forward(self, x: Tensor, h: Tensor, cached: tuple[Tensors, Tensor] | None = None) -> tuple[Tensor, Tensors]:
        """Attend over a segment.

        Args:
            x: [B, S, width]
            h: [B, S, width], recalled for each
            cached: keys and values [B, S - 1, N, D] as `empty` has them, and Int [B], how many of them take the place
                of the segment's first ones

        Returns:
            the attended [B, S, width], and the segment's keys and values [B, S, N, D]: tokens', then recalled.
        """
        context: Tensors = (*self.keys_and_values(x), *self.keys_and_values(h))
        if cached is not None:
            past, filled = cached
            old = (torch.arange(x.shape[1], device=x.device) < filled[:, None])[..., None, None]
            room = x.shape[1] - past[0].shape[1]
            past = tuple(nn.functional.pad(p, (0, 0, 0, 0, 0, room)).to(context[0].dtype) for p in past)
            context = tuple(torch.where(old, p, c) for p, c in zip(past, context, strict=True))
        y = attend_segment(
            split_heads(self.query(x), self.config.heads),
            *context,
            prefix=None if self.persistent is None else self.persistent(),
            rotary_base=self.config.rotary_base,
        )
        return self.output(y.flatten(2)), context


class Attention(MultiHead, Stream):
    """[B, T, width] -> [B, T, width], in a sliding window or over all before; arguments as of `MultiHead`."""

    @property
    def reach(self) -> int | None:
        """Tokens before a query that it sees; None for all of them."""
        return None if self.config.window is None else self.config.window - 1

    def init_state(self, batch_size: int) -> AttentionState:
        size = self.reach or 0
        heads = self.config.heads
        cache = self.key.weight.new_zeros(batch_size, size, heads, self.key.out_features // heads)
        return AttentionState(cache, cache.clone(), torch.zeros(batch_size, dtype=torch.long, device=self.device))

    def advance(
        self, x: Tensor, state: AttentionState | None, rows: Rows, memory: MemoryMode = "on"
    ) -> tuple[Tensor, AttentionState]:
        q, (k, v) = split_heads(self.query(x), self.config.heads), self.keys_and_values(x)
        past = self.init_state(len(x)) if state is None else state
        fresh = state is None
        if fresh:
            keys, values = k, v
        else:
            keys, values = (torch.cat([a.to(b.dtype), b], dim=1) for a, b in ((past.keys, k), (past.values, v)))
        query_document, key_document = self._documents(past, rows, x.shape[1], fresh)
        y = attend(
            q,
            keys,
            values,
            window=self.config.window,
            query_document=query_document,
            key_document=key_document,
            prefix=None if self.persistent is None else self.persistent(),
            rotary_base=self.config.rotary_base,
            backend=self.config.backend,
        )
        return self.output(y.flatten(2)), self._remember(past, k, v, rows)

    def _documents(
        self, past: AttentionState, rows: Rows, total: int, fresh: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which document queries and keys belong to, -1 for empty places; None, None when all is one document."""
        size = past.keys.shape[1]
        if rows.plain and (fresh or bool((past.filled == size).all())):
            return None, None
        shape = (len(past.filled), total)
        query = past.filled.new_zeros(shape) if rows.document is None else rows.document
        key = query if rows.mask is None else query.masked_fill(~rows.mask, -1)
        if fresh:
            return query, key
        place = torch.arange(size, device=query.device)
        cached = torch.where(place >= size - past.filled[:, None], 0, -1)
        return query, torch.cat([cached, key], dim=1)

    def _remember(self, past: AttentionState, k: Tensor, v: Tensor, rows: Rows) -> AttentionState:
        """The cache after this call, with zeros where another document was, as in a fresh state."""
        total = k.shape[1]
        if self.config.window is None:  # make room for everything
            room = past.keys.new_zeros(len(k), total, *k.shape[2:])
            past = AttentionState(torch.cat([room, past.keys], 1), torch.cat([room, past.values], 1), past.filled)
        size = past.keys.shape[1]
        filled = rows.carried(past.filled, total, size)
        others = (torch.arange(size, device=k.device) < size - filled[:, None])[..., None, None]
        pairs = ((past.keys, k), (past.values, v))
        keys, values = (rows.last(a, b.to(a.dtype)).masked_fill(others, 0) for a, b in pairs)
        return AttentionState(keys, values, filled)
