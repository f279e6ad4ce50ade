"""RMSNorm (1910.07467) whose statistics are computed in fp32 or wider, whatever the input."""

import torch
from torch import nn

from neuralmem.typing import Tensor


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last axis.

    Args:
        width: size of the last axis
        eps: added to the mean square

    Example:
        >>> RMSNorm(4)(torch.tensor([2.0, 2.0, 2.0, 2.0])).round(decimals=3)
        tensor([1., 1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.gain).to(x.dtype)
