"""Torch's flash attention for the CPU, merged with the persistent prefix: full attention without its T x K scores.

Special: that kernel's causal mask puts the first query with the first key, so cached keys are a call of their own, in
which every query sees every key, and the two are merged by their log-sum-exps (README.md, "The merge"). Half precision
is computed in float32, as `dense` does.
"""

import torch

from neuralmem.ops.attention.call import Call
from neuralmem.ops.attention.merge import Kernel, merge, merged_attention
from neuralmem.ops.checks import other_derivatives
from neuralmem.typing import Tensor, Tensors

FEWEST_SCORES = 128 * 128  # T x K; with fewer there is under a millisecond to gain (docs/benchmarks.md)
aten = torch.ops.aten


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    if other_derivatives():
        return "it knows backward only, not torch.func or forward-mode derivatives"
    if call.query.device.type != "cpu":
        return f"it runs on the CPU, got {call.query.device.type}"
    if call.window is not None:
        return f"it takes no window, got {call.window}; 'banded' does"
    if call.key_document is not None:
        return "it takes no documents and no empty cache slots"
    return "it needs at least one query, got T = 0" if call.query.shape[1] == 0 else None


def _parts(q: Tensor, k: Tensor) -> list[tuple[slice, bool]]:
    """Which keys a call of the kernel sees, and whether its mask is causal: those of the queries, then cached ones."""
    cached = k.shape[2] - q.shape[2]
    own = (slice(cached, None), True)
    return [own, (slice(cached), False)] if cached else [own]


def _forward(rotated: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensors:
    q, k, v = (x.transpose(1, 2) for x in (rotated, key, value))  # [B, N, T or K, D]
    results = []
    for keys, causal in _parts(q, k):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k[:, :, keys], v[:, :, keys], 0.0, causal)
        results.append((out.transpose(1, 2), lse))
    return results[0] if len(results) == 1 else merge(*results[0], *results[1])


def _backward(
    grad: Tensor, rotated: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, window: int | None
) -> Tensors:
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, rotated, key, value, out))
    shares = [
        aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k[:, :, keys], v[:, :, keys], out, lse, 0.0, causal
        )
        for keys, causal in _parts(q, k)
    ]
    of_query = sum(share[0] for share in shares)
    of_keys = (torch.cat([share[i] for share in reversed(shares)], dim=2) for i in (1, 2))  # cached ones come first
    return tuple(x.transpose(1, 2) for x in (of_query, *of_keys))


KERNEL = Kernel(_forward, _backward)


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    query, rotated, key, value = (x.to(call.accumulator) for x in (call.query, call.rotated, call.key, call.value))
    prefix = call.prefix and (call.prefix[0].to(call.accumulator), call.prefix[1].to(call.accumulator))
    wide = call._replace(query=query, rotated=rotated, key=key, value=value, prefix=prefix)
    return merged_attention(KERNEL, wide).to(call.query.dtype)
