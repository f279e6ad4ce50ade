"""What every memory rule shares: projections, the state of a stream, reading without writing, and the way out.

A rule is one file with a subclass: its initial weights, its gates, its update. How a call of any length meets the
grid of chunks is in _chunks.py.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._chunks import Chunks, Fast
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.short_conv import ShortConv
from neuralmem.modules.stream import Rows
from neuralmem.state import State, choose
from neuralmem.typing import MemoryMode, Tensor, Tensors


@dataclass(frozen=True)
class MemoryState(State):
    """What a memory knows, per sample. Its size depends on the config alone: numbers of weights and momentum, plus
    (chunk_size - 1) * (2 H D + gates * H) pending, 3 * (taps - 1) * H D convolution tails, and one integer.

    Args:
        weights: fast weights as of the last chunk start, [B, H, D_out, D_in] each, fp32 or wider
        momentum: past surprise, like `weights`; empty for a rule without
        pending: what the unfinished chunk's tokens write, [B, chunk_size - 1, ...] each, zeros after `filled`
        filled: Int [B], tokens in the unfinished chunk
        convolution: tails of the convolutions on queries, keys and values
    """

    weights: Tensors
    momentum: Tensors
    pending: Tensors
    filled: Tensor
    convolution: Tensors


def unit(x: Tensor) -> Tensor:
    """x scaled to length one along the last axis; what is shorter than 0.01 is scaled by 100 only.

    A first key may be exactly zero, and F.normalize's own bound of 1e-12 would multiply its gradient by 1e12.
    """
    return F.normalize(x, dim=-1, eps=1e-2)


class MemoryRule(Chunks):
    """A memory as a layer's mixer: [B, T, width] -> [B, T, width].

    Queries, keys and values are linear maps of the input, a short convolution, SiLU; queries and keys have unit length
    (Titans 4.4). What is read is normalised per head, gated and projected.

    Args:
        width: of the residual stream
        config: the memory's settings
    """

    has_memory = True

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__()
        if config.head_width is None and width % config.heads:
            raise UserError(f"memory.heads is {config.heads}; it must divide width {width}, or set memory.head_width")
        self.config = config
        self.heads, self.head_width = config.heads, config.head_width or width // config.heads
        inner = self.heads * self.head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        taps = config.convolution
        convolutions = nn.ModuleList(ShortConv(inner, taps) for _ in range(3 if taps > 1 else 0))
        self.convolutions: list[ShortConv] = convolutions  # type: ignore[assignment]
        self.read_norm = RMSNorm(self.head_width)
        self.gate = nn.Linear(width, inner, bias=False) if config.output_gate else None
        self.output = nn.Linear(inner, width, bias=False)
        if self.convolutions and config.induction:
            self._start_with_induction()

    @abstractmethod
    def initial(self) -> Fast:
        """Learned first weights and first momentum, each [H, D_out, D_in]."""

    @abstractmethod
    def gates(self, x: Tensor) -> Tensors:
        """What decides how much a token writes, from the layer's input [B, T, width]: tensors [B, T, H] in fp32."""

    @abstractmethod
    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        """Read at fixed weights. q: [B, T, H, D] -> [B, T, H, D]."""

    @property
    def reach(self) -> int:
        """Tokens before the current one that the convolutions see."""
        return self.config.convolution - 1

    def fast(self, batch_size: int) -> Fast:
        """The initial weights and momentum for every sample: [B, H, D_out, D_in] in the state's dtype."""
        # Copies: a step of the optimizer must not change a state that was read before it.
        weights, momentum = (
            tuple(x.to(self.state_dtype, copy=True).expand(batch_size, *x.shape) for x in part)
            for part in self.initial()
        )
        return weights, momentum

    def init_state(self, batch_size: int) -> MemoryState:
        weights, momentum = self.fast(batch_size)
        gates = self.gates(self.query.weight.new_zeros(batch_size, 0, self.query.in_features))
        shapes = [(self.heads, self.head_width)] * 2 + [g.shape[2:] for g in gates]
        like = self.query.weight.to(self.state_dtype)
        pending = tuple(like.new_zeros(batch_size, self.config.chunk_size - 1, *shape) for shape in shapes)
        tails = tuple(convolution.init_state(batch_size) for convolution in self.convolutions)
        filled = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return MemoryState(weights, momentum, pending, filled, tails)

    def advance(
        self, x: Tensor, state: MemoryState | None, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, MemoryState]:
        fresh, state = state is None, state or self.init_state(len(x))
        q, written, tails = self._project(x, state.convolution, rows)
        if memory != "on" and rows.reset is not None:
            state = choose(rows.reset.any(1), self.init_state(len(x)), state)
        kept = (state.weights, state.momentum, state.pending, state.filled)
        if memory == "off":
            return torch.zeros_like(x), MemoryState(*kept, tails)
        if memory == "frozen":
            return self._leave(self.evaluate(q, self.fast(len(x))[0]), x), MemoryState(*kept, tails)
        with probe.inside(self):
            y, kept = self.read_and_write(q, written, kept, rows, fresh)
            self._observe(kept[0])
        return self._leave(y, x), MemoryState(*kept, tails)

    def retrieve(self, x: Tensor, state: MemoryState) -> Tensor:
        """Read without writing what everything read so far left in the memory, each token by itself.

        Of the query's convolution only the current token's tap counts, as at the start of a stream.

        Args:
            x: [B, T, width]
            state: not changed

        Returns:
            [B, T, width]
        """
        return self.recall(x, self.close(state).weights)

    def recall(self, x: Tensor, weights: Tensors) -> Tensor:
        """Read at given weights [B, H, D_out, D_in]: the query, the memory, the way out. [B, T, width] -> same."""
        q = self.query(x)
        if self.convolutions:
            q = q * self.convolutions[0].weight[0]  # the current token's tap, as at the start of a stream
        q = unit(F.silu(self._split(q)))
        return self._leave(self.evaluate(q, weights), x)

    def close(self, state: MemoryState) -> MemoryState:
        """End the unfinished chunk: its writes enter the weights, and the next token starts a chunk."""
        index = torch.arange(state.pending[0].shape[1], device=state.filled.device)
        nothing = torch.zeros_like(state.pending[0])
        fast, write = (state.weights, state.momentum), index < state.filled[:, None]
        with probe.inside(self):
            _, (weights, momentum) = self.update(nothing, state.pending, fast, write, None)
        pending = tuple(map(torch.zeros_like, state.pending))
        return MemoryState(weights, momentum, pending, torch.zeros_like(state.filled), state.convolution)

    def segment(self, x: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Read a whole segment [B, T, width] from a chunk start and close it: the fast path of MAC."""
        q, written, tails = self._project(x, state.convolution, Rows())
        with probe.inside(self):
            y, fast = self.update(q, written, (state.weights, state.momentum), None, None)
            self._observe(fast[0])
        return self._leave(y, x), MemoryState(*fast, state.pending, state.filled, tails)

    def _observe(self, weights: Tensors) -> None:
        if probe.active("state_norm"):
            probe.observe("state_norm", torch.stack([w.detach().flatten(2).norm(dim=-1) for w in weights]))

    @torch.no_grad()
    def _start_with_induction(self) -> None:
        """Make token t's key what token t-1's query is, its value the token itself, the way out the way in reversed.

        Asked the same again, the memory then answers with what followed. It is what makes recall learnable in minutes
        (docs/numerics.md); training may change all of it.
        """
        query, key, value = (convolution.weight for convolution in self.convolutions)  # [taps, H * D]
        nearest_first = 2.0 ** (1 - torch.arange(len(query), dtype=query.dtype))  # 2, 1, 1/2, ...
        query.mul_(nearest_first[:, None].to(query.device))
        query[-1] = 0  # the farthest tap, for which the key, one token later, has no room
        key[0], key[1:] = 0, query[:-1]
        value[0], value[1:] = 1, 0
        self.key.weight.copy_(self.query.weight)
        self.output.weight.copy_(self.value.weight.T)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b t h d", h=self.heads)

    def _project(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[Tensor, Tensors, Tensors]:
        """Input to queries and to what is written: keys, values, gates."""
        projected, after = [f(x) for f in (self.query, self.key, self.value)], []
        for i, (convolution, tail) in enumerate(zip(self.convolutions, tails, strict=True)):
            projected[i], new = convolution(projected[i], tail, rows)
            after.append(new)
        q, k, v = (self._split(F.silu(u)) for u in projected)
        q, k = unit(q), unit(k)
        with probe.inside(self):
            gates = self.gates(x)
        return q, (k, v, *gates), tuple(after)

    def _leave(self, y: Tensor, x: Tensor) -> Tensor:
        """What was read [B, T, H, D] to the residual stream."""
        y = self.read_norm(y).flatten(2)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        return self.output(y.to(x.dtype))
