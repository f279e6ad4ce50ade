"""Two softmaxes made one by their log-sum-exps, and its backward through kernels that do not differentiate theirs.

The flash rungs compute window and prefix apart. The backward calls the flash backward with the merged output and the
merged log-sum-exp, which makes its gradients exact for the window's share of the one softmax: README.md, "The merge".
Where gradients are to be differentiated again, they are made by `dense`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from neuralmem.ops.attention import dense
from neuralmem.ops.attention.call import Call
from neuralmem.ops.checks import other_derivatives
from neuralmem.typing import Tensor, Tensors


class Kernel(NamedTuple):
    """A flash attention over tokens only. out [B, T, N, D] in the inputs' dtype, lse [B, N, T] in float32 or wider."""

    forward: Callable[[Tensor, Tensor, Tensor, int | None], Tensors]  # rotated, key, value, window -> out, lse
    # grad, rotated, key, value, out, lse, window -> gradients of rotated, key, value
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int | None], Tensors]


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensors:
    """Attention over the union of two disjoint sets of keys.

    Args:
        out_a, out_b: Float [B, T, N, D], finite
        lse_a, lse_b: Float [B, N, T]; -inf where the set is empty

    Returns:
        out [B, T, N, D] in the dtype of lse (zeros where both are empty), lse [B, N, T]

    Example:
        >>> out, lse = torch.tensor([2.0]).view(1, 1, 1, 1), torch.zeros(1, 1, 1)
        >>> merge(out, lse, -out, lse + torch.tensor(3.0).log())[0].item()
        -1.0
    """
    lse = torch.logaddexp(lse_a, lse_b)
    finite = lse.masked_fill(lse == -torch.inf, 0)
    weight_a, weight_b = ((x - finite).exp().transpose(1, 2)[..., None] for x in (lse_a, lse_b))
    return weight_a * out_a + weight_b * out_b, lse


def prefix_attention(query: Tensor, prefix: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensors:
    """Un-rotated queries [B, T, N, D] over the prefix alone: out [B, T, N, D] and lse [B, N, T] in `dtype`."""
    key, value = (x.to(dtype).transpose(0, 1) for x in prefix)  # [N, P, D]
    scores = (query.to(dtype).transpose(1, 2) * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (scores.softmax(-1) @ value).transpose(1, 2), scores.logsumexp(-1)


def _prefix_backward(grad: Tensor, query: Tensor, prefix: Tensors, out: Tensor, lse: Tensor) -> Tensors:
    """Gradients of query and prefix under the merged softmax; lse and out are the merged ones."""
    scale = query.shape[-1] ** -0.5
    grad, query, out = (x.to(lse.dtype).transpose(1, 2) for x in (grad, query, out))  # [B, N, T, D]
    key, value = (x.to(lse.dtype).transpose(0, 1) for x in prefix)  # [N, P, D]
    weights = ((query * scale) @ key.transpose(-1, -2) - lse[..., None]).exp()  # [B, N, T, P]
    delta = (grad * out).sum(-1, keepdim=True)
    grad_scores = weights * (grad @ value.transpose(-1, -2) - delta) * scale
    grad_key = torch.einsum("bntp,bntd->pnd", grad_scores, query)
    grad_value = torch.einsum("bntp,bntd->pnd", weights, grad)
    return (grad_scores @ key).transpose(1, 2), grad_key, grad_value


def _dense_backward(grad: Tensor, window: int | None, *inputs: Tensor) -> list[Tensor | None]:
    """Gradients with a graph; inputs: query, rotated, key, value, and the prefix if there is one."""
    again = [x.view_as(x) for x in inputs]
    query, rotated, key, value, *prefix = again
    pair = (prefix[0], prefix[1]) if prefix else None
    out = dense.run(Call(query, rotated, key, value, window, None, None, pair))
    wanted = [x for x in again if x.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in again]


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        window: int | None,
        query: Tensor,
        rotated: Tensor,
        key: Tensor,
        value: Tensor,
        *prefix: Tensor,
    ) -> Tensor:
        out, lse = kernel.forward(rotated, key, value, window)
        if prefix:
            out, lse = merge(out, lse, *prefix_attention(query, (prefix[0], prefix[1]), lse.dtype))
        out = out.to(query.dtype)
        ctx.save_for_backward(query, rotated, key, value, out, lse, *prefix)
        ctx.kernel, ctx.window = kernel, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, rotated, key, value, out, lse, *prefix = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph
            return None, None, *_dense_backward(grad, ctx.window, query, rotated, key, value, *prefix)
        gradients = ctx.kernel.backward(grad.contiguous(), rotated, key, value, out, lse, ctx.window)
        if not prefix:
            return None, None, None, *gradients
        grad_query, grad_prefix_key, grad_prefix_value = (
            g.to(query.dtype) for g in _prefix_backward(grad, query, prefix, out, lse)
        )
        return None, None, grad_query, *gradients, grad_prefix_key, grad_prefix_value


def merged_attention(kernel: Kernel, call: Call) -> Tensor:
    """[B, T, N, D] by one flash call over the tokens, merged with the prefix."""
    tensors = (x.contiguous() for x in (call.query, call.rotated, call.key, call.value))
    return _MergedAttention.apply(kernel, call.window, *tensors, *(call.prefix or ()))


def flash_refuses(call: Call) -> str | None:
    """What every flash kernel asks for: why the call does not fit, or None."""
    width = call.query.shape[-1]
    if other_derivatives():
        return "it knows backward only, not torch.func or forward-mode derivatives"
    if call.query.device.type != "cuda":
        return f"it needs a CUDA device, got {call.query.device.type}"
    if torch.cuda.get_device_capability(call.query.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or more"
    if call.query.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, got {call.query.dtype}"
    if call.key_document is not None:
        return "it takes no documents and no empty cache slots"
    if width % 8 or width > 256:
        return f"it needs a head width that is a multiple of 8 and at most 256, got {width}"
    return "it needs at least one query, got T = 0" if call.query.shape[1] == 0 else None
