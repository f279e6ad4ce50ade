"""What the rules with queries, keys and values share: projections, convolutions, unit length, the way out.

A rule is one file with a subclass: its initial weights, its gates, its update.
"""

from abc import abstractmethod

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory._memory import Memory, MemoryState
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.short_conv import ShortConv
from neuralmem.modules.stream import Rows
from neuralmem.typing import Tensor, Tensors


def unit(x: Tensor) -> Tensor:
    """x scaled to length one along the last axis; what is shorter than 0.01 is scaled by 100 only.

    A first key may be exactly zero, and F.normalize's own bound of 1e-12 would multiply its gradient by 1e12.
    """
    return F.normalize(x, dim=-1, eps=1e-2)


class MemoryRule(Memory):
    """A memory of values by keys.

    Queries, keys and values are linear maps of the input, a short convolution, SiLU; queries and keys have unit length
    (Titans 4.4). What is read is normalised per head, gated and projected.

    Args:
        width: of the residual stream
        config: the memory's settings
    """

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        inner = self.heads * self.head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        taps = config.convolution
        convolutions = nn.ModuleList(ShortConv(inner, taps) for _ in range(3 if taps > 1 else 0))
        self.convolutions = convolutions  # type: ignore[assignment]
        self.read_norm = RMSNorm(self.head_width)
        self.gate = nn.Linear(width, inner, bias=False) if config.output_gate else None
        self.output = nn.Linear(inner, width, bias=False)
        if self.convolutions and config.induction:
            self._start_with_induction()

    @abstractmethod
    def gates(self, x: Tensor) -> Tensors:
        """What decides how much a token writes, from the input [B, T, width]: tensors [B, T, H, ...] in fp32."""

    @property
    def written_shapes(self) -> list[tuple[int, ...]]:
        gates = self.gates(self.query.weight.new_zeros(1, 0, self.width))
        return [(self.heads, self.head_width)] * 2 + [tuple(gate.shape[2:]) for gate in gates]

    def project(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[Tensor, Tensors, Tensors]:
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

    def ask(self, x: Tensor) -> Tensor:
        q = self.query(x)
        if self.convolutions:
            q = q * self.convolutions[0].weight[0]  # the current token's tap
        return unit(F.silu(self._split(q)))

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        y = self.read_norm(y).flatten(2)
        if self.gate is not None:
            y = y * F.silu(self.gate(x))
        return self.output(y.to(x.dtype))

    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of |M(k) - v|^2."""
        _, (keys, values, *_), _ = self.project(x, self.init_state(len(x)).convolution, Rows())
        return (self.evaluate(keys, self.close(state).weights) - values).square().sum(-1).mean()

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
