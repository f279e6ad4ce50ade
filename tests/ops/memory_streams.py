"""Long streams with bf16 or fp16 operands: a memory that stays alive, and the numerics gate of the native kernels.

What rounding does cannot be held to a fixed number, so it is compared with what it does to `chunked`: on the same
inputs, against float64, window by window, no kernel may be more than three times as far off.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.ops import neural_memory

WINDOW = 256  # tokens
TIMES = 3


@dataclass(frozen=True)
class Shape:
    """Sizes and form of a memory and of the text that it reads."""

    tokens: int = 1024
    batch: int = 1
    heads: int = 2
    width: int = 64
    hidden: tuple[int, ...] = (128,)
    chunk_size: int = 64
    momentum: bool = True
    norm: bool = True
    activation: str = "silu"
    mask: bool = False
    reset: bool = False


def stream(shape: Shape, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of `neural_memory`: a map that the memory can learn, read with the step sizes of memory/titans.py."""
    random = torch.Generator().manual_seed(seed)
    B, T, H, D = shape.batch, shape.tokens, shape.heads, shape.width

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    def gate(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, T, H, generator=random)

    k = F.normalize(draw(B, T, H, D), dim=-1)
    q = F.normalize(k.roll(1, dims=1) + 0.3 * draw(B, T, H, D) / D**0.5, dim=-1)
    v = torch.einsum("hij,bthj->bthi", draw(H, D, D) / D**0.5, k)
    eta = gate(0.5, 0.99)
    theta = (0.8 if shape.norm else 0.5) * gate(0, 1) / shape.chunk_size * ((1 - eta) if shape.momentum else 0.3)
    widths = [D, *shape.hidden, D]

    def state(scale: float) -> tuple[Tensor, ...]:
        pairs = pairwise(widths)
        return tuple(scale * draw(B, H, out, into) / into**0.5 for into, out in pairs)

    arguments: dict[str, Any] = {"q": q, "k": k, "v": v, "theta": theta, "eta": eta if shape.momentum else None}
    arguments |= {"alpha": gate(1e-4, 5e-4), "weights": state(1.0)}
    arguments["momentum"] = state(0.01) if shape.momentum else None
    arguments |= {"chunk_size": shape.chunk_size, "activation": shape.activation}
    if shape.norm:
        arguments["norm"] = (D**-0.5 * (1 + 0.1 * draw(H, D)), 0.1 * D**-0.5 * draw(H, D))
    if shape.mask:
        arguments["write_mask"] = torch.rand(B, T, generator=random) > 0.2
    if shape.reset:
        arguments["reset"] = torch.zeros(B, T, dtype=torch.bool)
        arguments["reset"][:, shape.chunk_size * (T // shape.chunk_size // 2)] = True
        arguments["initial"] = (state(1.0), None)
    arguments = {name: x.to(dtype) if name in ("q", "k", "v") else x for name, x in arguments.items()}
    return convert(arguments, lambda x: x.to(device))


def convert(value: Any, change: Any) -> Any:
    """`change` applied to every tensor in a dict or tuple."""
    if isinstance(value, dict):
        return {name: convert(x, change) for name, x in value.items()}
    if isinstance(value, tuple):
        return tuple(convert(x, change) for x in value)
    return change(value) if isinstance(value, Tensor) else value


def tensors(value: Any) -> list[Tensor]:
    """Every floating-point tensor in a dict or tuple, in order."""
    found: list[Tensor] = []
    convert(value, lambda x: found.append(x) if x.is_floating_point() else None)
    return found


def results(arguments: dict[str, Any], backend: str, **options: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """y, the state at the end, and every gradient under a fixed random weighting of both, all as float64."""
    arguments = convert(arguments, lambda x: x.detach().requires_grad_(x.is_floating_point()))
    y, weights, momentum = neural_memory(**{**arguments, **options}, backend=backend)
    outputs = [y, *weights, *(momentum or ())]
    random = torch.Generator().manual_seed(1)
    weighted = [(x, torch.randn(x.shape, generator=random).to(x)) for x in outputs if x.requires_grad]
    parts, given = zip(*weighted, strict=True)
    gradients = torch.autograd.grad(parts, tensors(arguments), given, allow_unused=True, materialize_grads=True)
    y, *state = (x.detach().double() for x in outputs)
    return y, state, [x.double() for x in gradients]


def exact(arguments: dict[str, Any]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`results` in float64 of the very same numbers."""
    wide = convert(arguments, lambda x: x.double() if x.is_floating_point() else x)
    return results(wide, "chunked", checkpoint_every=8)


def check_against_rounded_chunked(arguments: dict[str, Any], **options: Any) -> None:
    """The gate: y per window, every tensor of the state and every gradient."""
    right, theirs, ours = exact(arguments), results(arguments, "chunked"), results(arguments, "native", **options)
    for window, one, other in zip(*(x[0].split(WINDOW, dim=1) for x in (right, ours, theirs)), strict=True):
        assert window.square().mean() > 1e-3, "an error of nothing would say nothing"
        assert_not_farther(one, other, window)
    for part in (1, 2):
        for one, other, wanted in zip(ours[part], theirs[part], right[part], strict=True):
            assert_not_farther(one, other, wanted)


def assert_not_farther(ours: Tensor, theirs: Tensor, right: Tensor) -> None:
    assert ours.isfinite().all()
    floor = torch.finfo(torch.float32).eps * right.norm()  # what float32 itself does to a state
    assert (ours - right).norm() <= TIMES * (theirs - right).norm() + floor
