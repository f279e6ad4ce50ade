"""The way in of a memory with queries, keys and values, and the way out: what MemoryRule and others share.

In: linear maps of the input, a short convolution each, SiLU; queries have unit length (Titans 4.4). Out: a norm per
head, a gate, a linear map.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from neuralmem.config import MemoryConfig
from neuralmem.memory._memory import Memory
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.short_conv import ShortConv
from neuralmem.modules.stream import Rows
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensor, Tensors


class Ways(Memory):
    """A memory that is asked by projected queries and answers through a norm, a gate and a projection.

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

    def enter(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[tuple[Tensor, Tensor, Tensor], Tensors]:
        """Input [B, T, width] to what queries, keys and values are made of, [B, T, H, D] each, and new tails."""
        projected, after = [f(x) for f in (self.query, self.key, self.value)], []
        for i, (convolution, tail) in enumerate(zip(self.convolutions, tails, strict=True)):
            projected[i], new = convolution(projected[i], tail, rows)
            after.append(new)
        q, k, v = (self._split(F.silu(u)) for u in projected)
        return (q, k, v), tuple(after)

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
