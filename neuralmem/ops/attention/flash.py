"""The flash-attn package (2.7 or later, extra `[flash]`), merged with the persistent prefix.

Not yet run on hardware. Written from flash_attn_interface.py of Dao-AILab/flash-attention at 0053002.
"""

import functools
import importlib
from types import ModuleType

import torch

from neuralmem.ops.attention.call import Call
from neuralmem.ops.attention.merge import Kernel, flash_refuses, merged_attention
from neuralmem.typing import Tensor, Tensors

OLDEST = (2, 7)  # the windows' two sides became two arguments


@functools.cache
def _package() -> ModuleType | str:
    """The package's interface, or why it cannot be used (a wheel for another torch is there but does not load)."""
    try:
        package = importlib.import_module("flash_attn.flash_attn_interface")
    except ModuleNotFoundError:
        return "the package flash-attn is not installed"
    except (ImportError, OSError) as error:
        return f"the package flash-attn does not load ({error})"
    version = importlib.import_module("flash_attn").__version__
    recent = tuple(int(x) for x in version.split(".")[:2]) >= OLDEST
    return package if recent else f"it needs the package flash-attn 2.7 or later, got {version}"


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    package = _package()
    return package if isinstance(package, str) else flash_refuses(call)


def _settings(width: int, window: int | None) -> dict[str, object]:
    """The last query is aligned with the last key; -1 is no limit. The window counts the query, flash does not."""
    return {
        "dropout_p": 0.0,
        "softmax_scale": width**-0.5,
        "causal": True,
        "window_size_left": -1 if window is None else window - 1,
        "window_size_right": 0,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


def _forward(rotated: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensors:
    settings = _settings(rotated.shape[-1], window)
    out, lse, *_ = _package()._flash_attn_forward(rotated, key, value, **settings, return_softmax=False)  # type: ignore[union-attr]
    return out, lse


def _backward(
    grad: Tensor, rotated: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, window: int | None
) -> Tensors:
    gradients = tuple(torch.empty_like(x) for x in (rotated, key, value))
    settings = _settings(rotated.shape[-1], window)
    _package()._flash_attn_backward(  # type: ignore[union-attr]
        grad, rotated, key, value, out, lse.contiguous(), *gradients, **settings, deterministic=False
    )
    return gradients


KERNEL = Kernel(_forward, _backward)


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    return merged_attention(KERNEL, call)
