"""Compiled flex_attention: the GPU rung for documents, empty cache slots and float32.

Its log-sum-exp is differentiable, so the prefix is merged by plain autograd. On the CPU it has no backward and runs
uncompiled, which serves the tests of its mask and merge. The CUDA path has not yet run on hardware.
"""

import functools
from typing import Any

import torch

from neuralmem.ops.attention.call import HOLE, Call
from neuralmem.ops.attention.merge import merge, prefix_attention
from neuralmem.typing import Tensor

SHORTEST_CALL = 128  # queries in one block of the kernel; below that, dense costs less than a compile per shape


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    device, width = call.query.device.type, call.query.shape[-1]
    if call.query.shape[1] == 0:
        return "it needs at least one query, got T = 0"
    if device == "cuda":
        if call.query.dtype == torch.float64:
            return "it has no float64 on CUDA"
        return None if width >= 16 else f"it needs a head width of at least 16, got {width}"
    if device != "cpu":
        return f"it needs a CUDA device, got {device}"
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (call.rotated, call.key, call.value))
    return "it has no backward on the CPU" if wanted else None


@functools.cache
def _functions(compiled: bool) -> tuple[Any, Any, Any]:
    """flex_attention, create_block_mask, AuxRequest; imported late because that takes a second."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    if not compiled:
        return flex_attention, create_block_mask, AuxRequest
    return torch.compile(flex_attention), torch.compile(create_block_mask), AuxRequest


def _block_mask(call: Call) -> Any:
    """`dense.visible` as flex wants it: a function of indices, and the blocks that it leaves non-empty."""
    batch, tokens = call.query.shape[:2]
    cached, window = call.cached, call.key.shape[1] if call.window is None else call.window
    query_document, key_document = call.query_document, call.key_document

    def in_window(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        age = query + cached - key
        return (age >= 0) & (age < window)

    def in_document(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert query_document is not None
        assert key_document is not None
        theirs = key_document[b, key]
        return in_window(b, h, query, key) & (query_document[b, query] == theirs) & (theirs != HOLE)

    create = _functions(call.query.is_cuda)[1]
    rows, mask = (None, in_window) if key_document is None else (batch, in_document)
    return create(mask, rows, None, tokens, call.key.shape[1], device=call.query.device)


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    attention, _, aux = _functions(call.query.is_cuda)
    rotated, key, value = (x.transpose(1, 2).contiguous() for x in (call.rotated, call.key, call.value))
    mask = _block_mask(call)
    if call.prefix is None:
        return attention(rotated, key, value, block_mask=mask).transpose(1, 2)
    out, extra = attention(rotated, key, value, block_mask=mask, return_aux=aux(lse=True))
    out, _ = merge(out.transpose(1, 2), extra.lse, *prefix_attention(call.query, call.prefix, call.accumulator))
    return out.to(call.query.dtype)
