"""Rotary positions: a query and a key turned by their positions, so that their product depends on the distance only.

The two halves of the head width form the pairs (GPT-NeoX layout). Angles are computed in float64 where the device has
it, because at key index 10^6 a float32 angle is already off by 0.06 rad; the turn itself is done in float32 or wider.
Source: RoFormer (2104.09864), equation 34.
"""

import torch

from neuralmem.errors import UserError
from neuralmem.typing import Tensor

Table = tuple[Tensor, Tensor]


def rotary_table(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> Table:
    """Cosines and sines for `rotate`.

    Args:
        positions: Int [T] or [B, T]
        width: head width D, even
        base: the slowest pair turns by base^(2/D - 1) per token
        dtype: of the result; float32 or float64

    Returns:
        two Float [..., T, 1, D/2], ready to broadcast over heads

    Raises:
        UserError: the head width is odd.
    """
    if width % 2:
        raise UserError(f"head width is {width}; it must be even, for rotary positions")
    exact = torch.float32 if positions.device.type == "mps" else torch.float64
    exponent = torch.arange(0, width, 2, dtype=exact, device=positions.device) / width
    angle = (positions.to(exact)[..., None] * base**-exponent)[..., None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, table: Table) -> Tensor:
    """x Float [B, T, N, D] turned by its positions; the result has the dtype of x.

    Example:
        >>> x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
        >>> table = rotary_table(torch.arange(3), width=2, base=10000.0, dtype=torch.float32)
        >>> rotate(x, table)[0, :, 0]  # one radian per token
        tensor([[ 1.0000,  0.0000],
                [ 0.5403,  0.8415],
                [-0.4161,  0.9093]])
    """
    cos, sin = table
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
