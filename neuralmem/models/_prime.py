"""Feed-forwards with weights per sequence, and the step that they take after a mini-batch.

What learns is an MLP of its own before the layer's feed-forward (`Prime`), or the hidden units of the feed-forward
itself (`Units`).

TTT-E2E (2512.23675): W <- W - theta clip(mean gradient of the next-token loss). With several levels, each of a period
of its own, a continuum memory system (2512.24695 Eq. 70-71) whose loss is the model's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from neuralmem.config import EndToEndConfig
from neuralmem.layers._layer import Layer
from neuralmem.modules.init import RESIDUAL_SCALE
from neuralmem.modules.norm import RMSNorm
from neuralmem.state import State
from neuralmem.typing import Tensor, Tensors


class PrimeFeedForward(nn.Module):
    """x + RMSNorm(W_down (silu(W_gate h) * W_up h)), h = RMSNorm(x): a SwiGLU whose weights are given.

    Its own weights are the first of every sequence.

    Args:
        width: of the residual stream
        hidden: width in between
        eps: of both norms

    Example:
        >>> prime, x = PrimeFeedForward(4, hidden=6, eps=1e-6), torch.randn(2, 3, 4)
        >>> prime(x, *(w.expand(2, *w.shape) for w in prime.initial())).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.before, self.after = RMSNorm(width, eps), RMSNorm(width, eps)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        with torch.no_grad():  # small weights, as of other maps into the stream, would be undone by the norm
            self.after.gain.mul_(RESIDUAL_SCALE)

    def initial(self) -> Tensors:
        """The first weights: [2 * hidden, width], gate above up, and [width, hidden]."""
        return self.up.weight, self.down.weight

    def forward(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """x: [B, T, width]; up, down: one set of weights per row, [B, ...], in fp32 or wider."""
        return x + self.after(_swiglu(self.before(x), up, down)).to(x.dtype)


def _swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W_down (silu(W_gate x) * W_up x) with weights per row. x: [B, T, width]; up [B, 2 h, width], gate above up."""
    gate, value = (x @ up.to(x.dtype).transpose(1, 2)).chunk(2, dim=-1)
    return (F.silu(gate) * value) @ down.to(x.dtype).transpose(1, 2)


@dataclass(frozen=True)
class Prime:
    """In a layer, one MLP per level, one after the other, then the feed-forward, which stays as it is.

    Args:
        layer: whose feed-forward it is
        levels: fastest first
    """

    layer: Layer
    levels: Sequence[PrimeFeedForward]

    def initial(self) -> list[Tensors]:
        """The first weights of every level, without the batch."""
        return [level.initial() for level in self.levels]

    def __call__(self, x: Tensor, weights: Sequence[Tensors]) -> Tensor:
        """The residual stream [B, T, width] through them. Without weights, MLPs add nothing."""
        for level, own in zip(self.levels, weights, strict=False):
            x = level(x, *own)
        return x + self.layer.feed_forward(self.layer.feed_forward_norm(x))


@dataclass(frozen=True)
class Units:
    """In a layer, the feed-forward, its hidden units dealt out to the levels: what they add is its sum over them.

    Args:
        layer: whose feed-forward it is
        levels: how many
    """

    layer: Layer
    levels: int

    def initial(self) -> list[Tensors]:
        """The first weights of every level, without the batch: its units' rows of up and columns of down."""
        up, down = self.layer.feed_forward.up.weight, self.layer.feed_forward.down.weight
        gate, value = (half.tensor_split(self.levels) for half in up.chunk(2))
        ups = [torch.cat(pair) for pair in zip(gate, value, strict=True)]
        return list(zip(ups, down.tensor_split(self.levels, dim=1), strict=True))

    def __call__(self, x: Tensor, weights: Sequence[Tensors]) -> Tensor:
        """The residual stream [B, T, width] and what they add. Without weights they add nothing."""
        h = self.layer.feed_forward_norm(x)
        for up, down in weights:
            x = x + _swiglu(h, up, down).to(x.dtype)
        return x


@dataclass(frozen=True)
class FastWeights(State):
    """The prime weights of every sequence as of its last update, in fp32 or wider.

    Args:
        weights: per level the matrices [B, D_out, D_in] of all its MLPs, two each, the first layer's first; empty for
            one that never learns, whose weights are the model's
        gradients: the same for a level that updates after several mini-batches: sums over those since its last update;
            empty for the others
        updates: Int [B], complete mini-batches of the document
    """

    weights: tuple[Tensors, ...]
    gradients: tuple[Tensors, ...]
    updates: Tensor

    @classmethod
    def fresh(cls, levels: list[Tensors], batch_size: int, config: EndToEndConfig, dtype: torch.dtype) -> "FastWeights":
        """Before the first token. levels: first weights, without the batch."""
        learning = [level if on is not None else () for level, on in zip(levels, config.intervals, strict=True)]
        # Copies: a step of the optimizer must not change a state that was read before it.
        copies = [[w.to(dtype, copy=True) for w in level] for level in learning]
        weights = tuple(tuple(w.expand(batch_size, *w.shape) for w in level) for level in copies)
        gradients = tuple(
            tuple(torch.zeros_like(w, memory_format=torch.contiguous_format) for w in level) if _waits(interval) else ()
            for level, interval in zip(weights, config.intervals, strict=True)
        )
        updates = torch.zeros(batch_size, dtype=torch.long, device=levels[0][0].device)
        return cls(weights, gradients, updates)

    def descend(self, gradients: Iterator[Tensor], rows: Tensor, config: EndToEndConfig) -> "FastWeights":
        """After a mini-batch.

        Args:
            gradients: its mean gradients [B, D_out, D_in] for all matrices of the levels that learn
            rows: Bool [B], for whom it is complete; zero gradients for the others
            config: periods, theta, clip
        """
        levels, sums = [], []
        for weights, sum_, interval in zip(self.weights, self.gradients, config.intervals, strict=True):
            if interval is not None:
                slopes: Tensors = tuple(next(gradients) for _ in weights)
                due = rows
                if _waits(interval):
                    slopes = tuple(a + b for a, b in zip(sum_, slopes, strict=True))
                    due = rows & ((self.updates + 1) % interval == 0)
                    sum_ = tuple(torch.where(_wide(due), 0, s) for s in slopes)
                weights = _step(weights, tuple(s / interval for s in slopes), due, config)
            levels.append(weights)
            sums.append(sum_)
        return FastWeights(tuple(levels), tuple(sums), self.updates + rows)


def _waits(interval: int | None) -> bool:
    """Whether a level updates after more than one mini-batch."""
    return interval is not None and interval > 1


def _wide(rows: Tensor) -> Tensor:
    """[B] against matrices [B, D_out, D_in]."""
    return rows[:, None, None]


def _step(weights: Tensors, gradients: Tensors, due: Tensor, config: EndToEndConfig) -> Tensors:
    """W - theta clip(g) where due: the norm is that of all matrices of a sequence together."""
    square = torch.stack([g.square().sum((1, 2)) for g in gradients]).sum(0)
    long = square > config.clip**2
    # The square root's derivative at zero is infinite, and so is NaN through `where`: it must not see a zero.
    scale = torch.where(long, config.clip * torch.where(long, square, 1).rsqrt(), 1)
    scale = config.theta * _wide(scale)
    return tuple(torch.where(_wide(due), w - scale * g, w) for w, g in zip(weights, gradients, strict=True))
