"""What the attention tests share: random calls, awkward documents, outputs and gradients side by side."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def make(tokens: int, cached: int = 0, heads: int = 3, prefix: int = 0, dtype: Any = torch.float64) -> dict[str, Any]:
    """Random arguments of attend: two rows, head width 4."""
    q, k, v = (torch.randn(2, n, heads, 4, dtype=dtype) for n in (tokens, cached + tokens, cached + tokens))
    pair = tuple(torch.randn(prefix, heads, 4, dtype=dtype) for _ in range(2)) if prefix else None
    return {"q": q, "k": k, "v": v, "prefix": pair}


def documents_for(keys: int) -> Tensor:
    """Row 0: holes in front, two documents, padding at the end. Row 1: a document of one token, a hole within."""
    index = torch.arange(keys)
    first = (index > keys // 2).long().masked_fill((index < 2) | (index >= keys - 2), -1)
    second = (index > 0).long().masked_fill(index == keys // 3, -1)
    return torch.stack([first, second])


Result = tuple[Tensor, list[Tensor]]


def gradients(function: Callable[..., Tensor], arguments: dict[str, Any], **options: Any) -> Result:
    """Output and the gradients of q, k, v and the prefix under a fixed random weighting of the output."""
    leaves = [arguments[name].clone().requires_grad_() for name in "qkv"]
    pair = tuple(x.clone().requires_grad_() for x in arguments["prefix"]) if arguments["prefix"] else None
    out = function(*leaves, prefix=pair, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves += pair or ()
    return out, list(torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True))


def assert_same(ours: Result, theirs: Result, atol: float) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=atol, rtol=0)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, other, atol=atol, rtol=0)
