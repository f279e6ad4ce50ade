"""Unit length, as queries and keys have it."""

from torch.nn import functional as F

from neuralmem.typing import Tensor


def unit(x: Tensor) -> Tensor:
    """x scaled to length one along the last axis; what is shorter than 0.01 is scaled by 100 only.

    A first key may be exactly zero, and F.normalize's own bound of 1e-12 would multiply its gradient by 1e12.
    """
    return F.normalize(x, dim=-1, eps=1e-2)
