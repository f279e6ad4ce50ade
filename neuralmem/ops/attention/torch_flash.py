"""Torch's own flash attention, merged with the persistent prefix: the default on a GPU in half precision.

The aten operators in their variable-length form, as `torch.nn.attention.varlen` calls them (torch 2.11 and 2.13). That
module's public function is not used because its backward cannot be given a merged log-sum-exp.
Not yet run on hardware.
"""

import torch

from neuralmem.ops.attention.call import Call
from neuralmem.ops.attention.merge import Kernel, flash_refuses, merged_attention
from neuralmem.typing import Tensor, Tensors


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    return flash_refuses(call)


def _lengths(x: Tensor) -> Tensor:
    """Where each row starts once [B, X, N, D] is flattened to [B * X, N, D]: Int32 [B + 1]."""
    batch, length = x.shape[:2]
    return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=x.device)


def _limits(window: int | None) -> dict[str, int]:
    """The last query is aligned with the last key; -1 is no limit. The window counts the query, flash does not."""
    return {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}


def _forward(rotated: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensors:
    flat = (x.flatten(0, 1) for x in (rotated, key, value))
    lengths = _lengths(rotated), _lengths(key), rotated.shape[1], key.shape[1]
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *flat, *lengths, 0.0, window is None, False, scale=rotated.shape[-1] ** -0.5, **_limits(window)
    )
    batch, tokens = rotated.shape[:2]
    return out.unflatten(0, (batch, tokens)), lse.unflatten(1, (batch, tokens)).transpose(0, 1)


def _backward(
    grad: Tensor, rotated: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, window: int | None
) -> Tensors:
    flat = (x.flatten(0, 1) for x in (grad, rotated, key, value, out))
    flat_lse = lse.transpose(0, 1).flatten(1).contiguous()  # [N, B * T]
    lengths = _lengths(rotated), _lengths(key), rotated.shape[1], key.shape[1]
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=grad.device), torch.empty(0, device=grad.device)
    gradients = torch.ops.aten._flash_attention_backward(
        *flat, flat_lse, *lengths, 0.0, window is None, *no_dropout, scale=grad.shape[-1] ** -0.5, **_limits(window)
    )
    return tuple(g.view_as(x) for g, x in zip(gradients, (rotated, key, value), strict=True))


KERNEL = Kernel(_forward, _backward)


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    return merged_attention(KERNEL, call)
