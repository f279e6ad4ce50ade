"""Argument checks that the ops share: every error names the argument, what it was and what it must be."""

import os
from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from neuralmem.backends import BACKENDS
from neuralmem.errors import UserError, nearest
from neuralmem.typing import Tensor


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor whose shape is not exactly `shape`."""
    if tuple(x.shape) != tuple(shape):
        raise UserError(f"{name} has shape {list(x.shape)}; it must be {list(shape)}")


def check_floating(**tensors: Tensor) -> None:
    """Refuse tensors that are not floating point or lie on another device than the first."""
    device = next(iter(tensors.values())).device
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise UserError(f"{name} has dtype {x.dtype}; it must be a floating-point tensor")
        if x.device != device:
            raise UserError(f"{name} is on {x.device}; it must be on {device} like {next(iter(tensors))}")


def check_tokens(q: Tensor, k: Tensor, v: Tensor, **gates: Tensor) -> None:
    """Refuse anything but q, k, v [B, T, H, D] of one dtype and gates [B, T, H], all on one device."""
    if q.ndim != 4:
        raise UserError(f"q has shape {list(q.shape)}; it must be [B, T, H, D]")
    check_floating(q=q, k=k, v=v, **gates)
    for name, x in (("k", k), ("v", v)):
        check_shape(name, x, q.shape)
        check_same_dtype(name, x, q)
    for name, gate in gates.items():
        check_shape(name, gate, q.shape[:3])


def check_same_dtype(name: str, x: Tensor, q: Tensor) -> None:
    """Refuse a tensor that has not the dtype of q."""
    if x.dtype != q.dtype:
        raise UserError(f"{name} has dtype {x.dtype}; it must be {q.dtype} like q")


def check_count(name: str, number: int | None) -> None:
    """Refuse a number of tokens or chunks below 1; None is no number."""
    if number is not None and number < 1:
        raise UserError(f"{name} is {number}; it must be at least 1")


def check_mask(name: str, mask: Tensor | None, shape: Sequence[int], device: torch.device | None = None) -> None:
    """Refuse a mask that is not Bool of exactly `shape`, or not on `device` if that is given."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise UserError(f"{name} has dtype {mask.dtype}; it must be torch.bool")
    check_shape(name, mask, shape)
    if device is not None and mask.device != device:
        raise UserError(f"{name} is on {mask.device}; it must be on {device} like q")


def unless_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B, T, H, D] with 0 for masked tokens, so that 0 times what they held is 0 even where that was no number."""
    return x if mask is None else torch.where(mask[..., None, None], x, 0)


def check_reset(reset: Tensor | None, chunk_size: int) -> None:
    """Refuse a reset anywhere but at a chunk's first token. Reads the mask's values, so not while compiling."""
    if reset is None or torch.compiler.is_compiling():
        return
    inside = reset.clone()
    inside[:, ::chunk_size] = False
    if bool(inside.any()):
        row, t = inside.nonzero()[0].tolist()
        raise UserError(
            f"reset is True at row {row}, token {t}; it may be True only at multiples of chunk_size={chunk_size}"
        )


def choose_backend(backend: str, available: Sequence[str], reasons: dict[str, str]) -> str:
    """The backend to run: `backend`, or for "auto" what NEURALMEM_BACKEND says, or the first available.

    Args:
        backend: one of BACKENDS
        available: what can run here, fastest first
        reasons: for what cannot, why
    """
    source = "backend"
    if backend == "auto":
        source, backend = "NEURALMEM_BACKEND", os.environ.get("NEURALMEM_BACKEND", "auto")
    if backend not in BACKENDS:
        raise UserError(f"{source} is {backend!r}; it must be one of {', '.join(BACKENDS)}{nearest(backend, BACKENDS)}")
    if backend == "auto":
        return available[0]
    if backend not in available:
        raise UserError(f"{source} is {backend!r}, which cannot run here: {reasons[backend]}")
    return backend


def other_derivatives() -> bool:
    """Whether somebody differentiates by torch.func or forward, which a function with a backward alone cannot take."""
    return bool(torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)
