"""Sliding-window attention in blocks: a block of queries against its own and the previous block of keys.

A block is as long as the window, so two blocks hold every key that the block's queries can see: O(T * window), explicit
products, differentiable twice. The rung for the CPU, and for anything that the GPU rungs refuse.
"""

import torch
from torch.nn.functional import pad

from neuralmem.ops.attention.call import HOLE, Call
from neuralmem.ops.attention.dense import masked_attention
from neuralmem.typing import Tensor

SHORTEST_BLOCK = 16  # below this the per-block overhead outweighs the scores that a larger block wastes


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    return "it needs a window, got window None (full attention)" if call.window is None else None


def _lay_out(x: Tensor, left: int, right: int, block: int, fill: int = 0) -> Tensor:
    """[B, X, ...] to whole blocks [B, blocks, block, ...]; a negative `left` drops what no query can see."""
    x = pad(x, [0, 0] * (x.ndim - 2) + [left, right], value=fill)
    return x.unflatten(1, (-1, block))


def _with_previous(x: Tensor) -> Tensor:
    """[B, blocks + 1, block, ...] -> [B, blocks, 2 * block, ...]."""
    return torch.cat([x[:, :-1], x[:, 1:]], 2)


def _seen(call: Call, window: int, block: int, left: int, right: int) -> Tensor:
    """Bool [1 or B, blocks, 1, block, 2 * block]."""
    device = call.key.device
    index = torch.arange(2 * block, device=device)
    age = index[block:, None] - index
    band = (age >= 0) & (age < window)
    if call.query_document is not None and call.key_document is not None:
        query = _lay_out(call.query_document, 0, right, block, HOLE)
        key = _with_previous(_lay_out(call.key_document, left, right, block, HOLE))
        band = band & (query[..., :, None] == key[..., None, :]) & (key != HOLE)[..., None, :]
        return band[:, :, None]
    # Only the cache's block can have padding that a query would see: what is right of the tokens is in their future.
    blocks = (call.query.shape[1] + right) // block
    real = torch.arange(-block, blocks * block, device=device).view(1, blocks + 1, block) >= -min(call.cached, block)
    return (band & _with_previous(real)[..., None, :])[:, :, None]


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    assert call.window is not None
    tokens = call.query.shape[1]
    if tokens == 0:
        return call.query.clone()
    block = max(call.window, SHORTEST_BLOCK)
    left, right = block - call.cached, -tokens % block

    def blocks(x: Tensor, left: int) -> Tensor:
        return _lay_out(x.to(call.accumulator), left, right, block)

    key, value = (_with_previous(blocks(x, left)).transpose(2, 3) for x in (call.key, call.value))
    rotated, plain = (blocks(x, 0).transpose(2, 3) for x in (call.rotated, call.query))  # [B, blocks, N, block, D]
    seen = _seen(call, call.window, block, left, right)
    out = masked_attention(rotated, key, value, seen, plain, call.prefix)
    return out.transpose(2, 3).flatten(1, 2)[:, :tokens].to(call.query.dtype)
