"""Torch's flash attention for the CPU, merged with the persistent prefix: full attention without its T x K scores.

Special: that kernel's causal mask puts the first query with the first key, so cached keys are a call of their own, in
which every query sees every key, and the two are merged by their log-sum-exps (README.md, "The merge").
"""

import torch

from neuralmem.ops.attention.call import Call
from neuralmem.ops.attention.merge import Kernel, merge, merged_attention
from neuralmem.typing import Tensor, Tensors

SHORTEST_CALL = 128  # queries; below it `dense` is as fast, and it can be differentiated twice
aten = torch.ops.aten


def refuses(call: Call) -> str | None:
    """Why this rung cannot serve the call; None: it can."""
    if call.query.device.type != "cpu":
        return f"it runs on the CPU, got {call.query.device.type}"
    if call.window is not None:
        return f"it takes no window, got {call.window}; 'banded' does"
    if call.key_document is not None:
        return "it takes no documents and no empty cache slots"
    return "it needs at least one query, got T = 0" if call.query.shape[1] == 0 else None


def _forward(rotated: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensors:
    q, k, v = (x.transpose(1, 2) for x in (rotated, key, value))  # [B, N, T or K, D]
    cached = k.shape[2] - q.shape[2]
    parts = []
    for keys, causal in ((slice(cached, None), True), (slice(cached), False))[: 1 + (cached > 0)]:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k[:, :, keys], v[:, :, keys], 0.0, causal)
        parts.append((out.transpose(1, 2), lse))
    return merge(*parts[0], *parts[1]) if cached else parts[0]


def _backward(
    grad: Tensor, rotated: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, window: int | None
) -> Tensors:
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, rotated, key, value, out))
    cached = k.shape[2] - q.shape[2]

    def share(keys: slice, causal: bool) -> Tensors:
        """Gradients of queries, and of these keys and values."""
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k[:, :, keys], v[:, :, keys], out, lse, 0.0, causal
        )

    gradients = share(slice(cached, None), True)
    if cached:
        earlier = share(slice(cached), False)
        joined = (torch.cat(pair, dim=2) for pair in zip(earlier[1:], gradients[1:], strict=True))
        gradients = (gradients[0] + earlier[0], *joined)
    return tuple(x.transpose(1, 2) for x in gradients)


KERNEL = Kernel(_forward, _backward)


def run(call: Call) -> Tensor:
    """[B, T, N, D]."""
    return merged_attention(KERNEL, call)
