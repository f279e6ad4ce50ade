"""Autocast, handled by the ops themselves: they cast their inputs as a matrix product would, then compute without it.

Inside autocast every explicit product of float32 scores or states would be rounded to half precision.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from neuralmem.typing import Tensor, Tensors


def to_autocast(*tensors: Tensor) -> Tensors:
    """What autocast makes of the factors of a matrix product: its dtype, but float64 stays.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     [x.dtype for x in to_autocast(torch.ones(1), torch.ones(1, dtype=torch.float64))]
        [torch.bfloat16, torch.float64]
    """
    kind = tensors[0].device.type
    if not _enabled(kind):
        return tensors
    return tuple(x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """A block in which autocast is off. `kind`: the device's type, "meta" included, which autocast does not know."""
    return torch.autocast(kind, enabled=False) if _enabled(kind) else nullcontext()


def _enabled(kind: str) -> bool:
    return kind != "meta" and torch.is_autocast_enabled(kind)
