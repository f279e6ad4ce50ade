"""The levels of a continuum memory: what they compute, their gradient by hand, and one step of a level.

A level is a SwiGLU feed-forward of a normed input. Source: Nested Learning (2512.24695) Eq. 70-71; the loss and the
size of a step are choices, derived in README.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from neuralmem.typing import Tensor, Tensors

Pair = tuple[Tensor, Tensor]
"""up [B or 1, H, 2 h, D] and down [B or 1, H, D, h] of one level."""


@dataclass(frozen=True)
class Form:
    """Everything about the levels that does not change while reading, fastest level first.

    Args:
        periods: tokens between two updates of each level, None for one that never updates
        first: the first weights of each level, with a batch of 1; with `nested` all are those of the last
        gains: [D] each, of the RMSNorm in front of each level
        mix: [levels], weights of the sum of levels side by side; None chains them
        nested: a level starts anew from the next slower one when that has updated
        residual: M(x) = x + what the levels add, else what they add
        clip: an error counts at most this much, root mean square over features
        eps: of the norms
        operand: dtype of the factors of matrix products
    """

    periods: tuple[int | None, ...]
    first: tuple[Pair, ...]
    gains: Tensors
    mix: Tensor | None = None
    nested: bool = False
    residual: bool = False
    clip: float = 3.0
    eps: float = 1e-6
    operand: torch.dtype = torch.float32

    def late(self, chunk_size: int) -> list[int]:
        """Indices of the levels that wait for more than one chunk, and so keep a sum of gradients."""
        return [i for i, period in enumerate(self.periods) if period is not None and period > chunk_size]

    def pairs(self, weights: Tensors) -> list[Pair]:
        """The current weights of every level, given those of the levels that learn."""
        own = zip(weights[::2], weights[1::2], strict=True)
        found = [None if period is None else next(own) for period in self.periods]
        current: list[Pair] = []
        for first, pair in zip(reversed(self.first), reversed(found), strict=True):
            base = current[-1] if self.nested and current else first
            current.append(pair or base)
        return current[::-1]

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b of rounded factors, in a's dtype."""
        return (a.to(self.operand) @ b.to(self.operand)).to(a.dtype)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """weight [B or 1, H, D_out, D_in] applied to x [B, H, T, D_in]."""
        if weight.shape[:2] == (1, 1):  # one matrix for all: the product of a plain feed-forward
            return F.linear(x.to(self.operand), weight[0, 0].to(self.operand)).to(x.dtype)
        return self.matmul(x, weight.mT)

    def passes(self, x: Tensor, pairs: list[Pair]) -> Iterator["Pass"]:
        """x [B, H, T, D] through every level in order."""
        added: Tensor | None = None
        for pair, gain in zip(pairs, self.gains, strict=True):
            h = x if added is None or self.mix is not None else x + added
            u = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps) * gain
            gate, value = self.linear(u, pair[0]).chunk(2, dim=-1)
            hidden = F.silu(gate) * value
            out = self.linear(hidden, pair[1])
            added = out if added is None or self.mix is not None else added + out
            yield Pass(u, gate, value, hidden, pair[1], added)

    def read(self, x: Tensor, pairs: list[Pair]) -> Tensor:
        """M(x), [B, H, T, D] -> the same."""
        return self.gather(x, [p.added for p in self.passes(x, pairs)])

    def gather(self, x: Tensor, added: list[Tensor]) -> Tensor:
        """M(x) from what each level adds: the end of the chain, or the weighted sum."""
        if self.mix is None:
            total = added[-1]
        else:
            total = sum((w * y for w, y in zip(self.mix, added, strict=True)), torch.zeros_like(x))
        return x + total if self.residual else total

    def clipped(self, error: Tensor) -> Tensor:
        """The error [..., D], no longer than clip sqrt(D)."""
        return error * (error.square().mean(-1, keepdim=True) / self.clip**2).clamp(min=1).rsqrt()

    def gradient(self, p: "Pass", error: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sum_t theta_t of the gradients of one level's loss, and a bound of its curvature by each matrix.

        Args:
            p: keys that passed the level
            error: [B, H, T, D], clipped
            theta: [B, H, T]

        Returns:
            Gradients [B, H, 2 h, D] and [B, H, D, h], and the bounds [B, H, 2].
        """
        delta = 2 * theta[..., None] * error
        back = self.matmul(delta, p.down)
        s = torch.sigmoid(p.gate)
        by_gate, by_value = p.value * s * (1 + p.gate * (1 - s)), F.silu(p.gate)
        slopes = torch.cat([back * by_gate, back * by_value], dim=-1)
        columns = p.down.square().sum(-2)[..., None, :]  # [B or 1, H, 1, h]
        reach = (columns * (by_gate.square() + by_value.square())).sum(-1)  # s_t^2
        curvature = self.curvature(p.hidden, p.u, reach, theta)
        return self.matmul(slopes.mT, p.u), self.matmul(delta.mT, p.hidden), curvature

    def curvature(self, hidden: Tensor, u: Tensor, reach: Tensor, theta: Tensor) -> Tensor:
        """2 max_t sum_s theta_s (s_t^2 + s_s^2) |u_t u_s| / 2, then of |z_t z_s|, [B, H, 2]: README.md, a step's size.

        Args:
            hidden, u: z and n(x), [B, H, T, h] and [B, H, T, D]
            reach: s^2, [B, H, T]
            theta: [B, H, T]; tokens with none do not count
        """
        up = self.matmul(u, u.mT).abs() * (reach[..., None] + reach[..., None, :]) / 2
        down = self.matmul(hidden, hidden.mT).abs()
        both = [torch.where(theta > 0, (x * theta[..., None, :]).sum(-1), 0).amax(-1) for x in (up, down)]
        return 2 * torch.stack(both, dim=-1)


@dataclass(frozen=True)
class Pass:
    """What a level made of its input, [B, H, T, ...] each.

    Args:
        u: its normed input
        gate, value: the two halves of up(u)
        hidden: silu(gate) * value
        down: the weights that follow, [B or 1, H, D, h]
        added: what this level and those before it in the chain add; side by side, what this level adds
    """

    u: Tensor
    gate: Tensor
    value: Tensor
    hidden: Tensor
    down: Tensor
    added: Tensor


def step(pair: Pair, base: Pair, gradient: Pair, forget: Tensor, curvature: Tensor) -> Pair:
    """W - f (W - W_0) - G / (1 + c), matrix by matrix: one update of a level at its period's end.

    Args:
        pair: W
        base: W_0, which forgetting leads back to
        gradient: G, of both matrices
        forget: f [B, H, 1, 1]
        curvature: c [B, H, 1, 2], bounds of that of the period's loss by either matrix
    """
    up, down = (
        w - forget * (w - b) - g / (1 + c)
        for w, b, g, c in zip(pair, base, gradient, curvature.split(1, -1), strict=True)
    )
    return up, down
