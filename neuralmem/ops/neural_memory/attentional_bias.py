"""Attentional bias: the inner loss that a memory descends, as a function of its error e = M(k) - v.

Miras (2504.13173): |e|^2, the lp norm of Moneta, the switch of Yaad. Special: the op needs only the loss's slope with
respect to M(k), so a bias is that; where it jumps, it is smoothed as the paper does, and differentiable once more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from neuralmem.errors import UserError
from neuralmem.typing import Tensor, Tensors


class AttentionalBias(ABC):
    """A loss of the error. Those with a setting per token hold it as a tensor [B, T, H]."""

    @abstractmethod
    def slope(self, error: Tensor, *settings: Tensor) -> Tensor:
        """The loss's gradient with respect to M(k). error: [..., D]; settings: [..., 1] each, of these tokens."""

    @property
    def settings(self) -> Tensors:
        """Tensors [B, T, H] that every token has its own of."""
        return ()

    def map(self, change: Callable[[Tensor], Tensor]) -> "AttentionalBias":
        """The same bias with `change` applied to its settings."""
        return self


@dataclass(frozen=True)
class L2(AttentionalBias):
    """|e|^2, the bias of Titans.

    Example:
        >>> L2().slope(torch.tensor([-1.0, 3.0]))
        tensor([-2.,  6.])
    """

    def slope(self, error: Tensor, *settings: Tensor) -> Tensor:
        return 2 * error


@dataclass(frozen=True)
class Lp(AttentionalBias):
    """|e|_p^p = sum_d |e_d|^p, whose slope is p sign(e) |e|^(p-1), with |e| = sqrt(e^2 + smooth) for |e|.

    Args:
        p: at least 1; 2 is |e|^2, never smoothed
        smooth: the square of the width around 0 in which the slope is smoothed; 0, exact, where p is at least 2

    Raises:
        UserError: p below 1, smooth below 0, or smooth of 0 with p below 2, where the slope's slope is infinite.

    Example:
        >>> Lp(3.0, smooth=0).slope(torch.tensor([-1.0, 2.0]))
        tensor([-3., 12.])
        >>> Lp(1.0).slope(torch.tensor([-5.0, 0.0, 0.1]))
        tensor([-1.,  0.,  1.])
    """

    p: float
    smooth: float = 1e-6

    def __post_init__(self) -> None:
        if self.p < 1:
            raise UserError(f"p is {self.p}; it must be at least 1")
        _check_smooth(self.smooth, may_be_zero=self.p >= 2)

    def slope(self, error: Tensor, *settings: Tensor) -> Tensor:
        if self.p == 2:
            return 2 * error
        if self.smooth == 0:
            return self.p * error.sign() * error.abs() ** (self.p - 1)
        return self.p * _sign(error, self.smooth) * (error.square() + self.smooth) ** ((self.p - 1) / 2)


@dataclass(frozen=True, eq=False)
class Huber(AttentionalBias):
    """Near what is known |e|^2, far from it a loss that grows linearly: the slope of |e|^2 where |e|_2 <= delta.

    Beyond, its length stays what it is there: 2 delta e / |e|_2, without a jump. With `smooth` it is Yaad's as printed,
    delta times the slope of |e|_1, each coordinate by itself, which jumps from length 2 delta to about delta sqrt(D).
    delta's gradient comes from the tokens beyond it.

    Args:
        delta: [B, T, H], not negative; of masked tokens anything
        smooth: None, or for the printed form the square of the width in which the sign is smoothed, above 0

    Raises:
        UserError: smooth that is not above 0.

    Example:
        >>> error, delta = torch.tensor([[0.3, -0.4], [3.0, -4.0]]), torch.ones(1, 2, 1)
        >>> Huber(delta).slope(error, delta[0])
        tensor([[ 0.6000, -0.8000],
                [ 1.2000, -1.6000]])
        >>> Huber(delta, smooth=1e-6).slope(error, delta[0])
        tensor([[ 0.6000, -0.8000],
                [ 1.0000, -1.0000]])
    """

    delta: Tensor
    smooth: float | None = None

    def __post_init__(self) -> None:
        if self.smooth is not None:
            _check_smooth(self.smooth, may_be_zero=False)

    @property
    def settings(self) -> Tensors:
        return (self.delta,)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Huber":
        return replace(self, delta=change(self.delta))

    def slope(self, error: Tensor, *settings: Tensor) -> Tensor:
        (delta,) = settings
        square = error.square().sum(-1, keepdim=True)
        near = square.detach().sqrt() <= delta
        if self.smooth is not None:
            return torch.where(near, 2 * error, delta * _sign(error, self.smooth))
        # Where it is not used the length is 1: that of an error of 0 has no gradient.
        length = torch.where(near, 1, square).sqrt()
        return torch.where(near, 2 * error, 2 * delta * error / length)


def _sign(error: Tensor, smooth: float) -> Tensor:
    """sign(e) as tanh(e / sqrt(smooth)): as wide around 0 as sqrt(e^2 + smooth) is round."""
    return torch.tanh(error / smooth**0.5)


def _check_smooth(smooth: float, *, may_be_zero: bool) -> None:
    if smooth < 0 or (smooth == 0 and not may_be_zero):
        raise UserError(f"smooth is {smooth}; it must be {'at least' if may_be_zero else 'above'} 0")
