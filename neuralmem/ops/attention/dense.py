"""Attention with every score written down: the oracle of the tests, and the rung for short calls.

Explicit products and one softmax over [prefix | keys], so any case is served and it can be differentiated twice.
Cost and memory O(T * K).
"""

import torch

from neuralmem.ops.attention.call import HOLE, Call
from neuralmem.typing import Tensor


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    return None


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, plain: Tensor, prefix: tuple[Tensor, Tensor] | None
) -> Tensor:
    """softmax([plain prefix_k^T | query key^T, where seen] / sqrt(D)) [prefix_v ; value], heads before tokens.

    Args:
        query, plain: Float [..., N, T, D] with and without rotary positions
        key, value: Float [..., N, K, D]
        seen: Bool, broadcasts to [..., N, T, K]
        prefix: None, or two Float [P, N, D]

    Returns:
        Float [..., N, T, D]; zeros for a query that sees nothing
    """
    scale = query.shape[-1] ** -0.5
    scores = (query * scale) @ key.transpose(-1, -2)
    # The lowest finite number rather than -inf: a row that sees nothing then has no NaN in any derivative.
    scores = scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
    if prefix is None:
        return (scores.softmax(-1) @ value).masked_fill(~seen.any(-1, keepdim=True), 0)
    prefix_key, prefix_value = (x.to(query.dtype).transpose(0, 1) for x in prefix)  # [N, P, D]
    count = prefix_key.shape[1]
    prefix_scores = (plain * scale) @ prefix_key.transpose(-1, -2)  # [..., N, T, P]
    weights = torch.cat([prefix_scores, scores], -1).softmax(-1)
    return weights[..., :count] @ prefix_value + weights[..., count:] @ value


def visible(call: Call) -> Tensor:
    """Which query sees which key: Bool [1 or B, 1, T, K]."""
    index = torch.arange(call.key.shape[1], device=call.key.device)
    age = index[call.cached :, None] - index  # [T, K]
    seen = age >= 0 if call.window is None else (age >= 0) & (age < call.window)
    seen = seen[None]
    if call.query_document is not None and call.key_document is not None:
        same = call.query_document[:, :, None] == call.key_document[:, None, :]
        seen = seen & same & (call.key_document != HOLE)[:, None, :]
    return seen[:, None]


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    rotated, key, value, plain = (
        x.to(call.accumulator).transpose(1, 2) for x in (call.rotated, call.key, call.value, call.query)
    )
    out = masked_attention(rotated, key, value, visible(call), plain, call.prefix)
    return out.transpose(1, 2).to(call.query.dtype)
