"""Continuum memory: feed-forwards that learn while reading, each at a period of its own (2512.24695 Eq. 70-71).

Backends: `reference.py` is the token loop, `chunked.py` the same function by matrix products. README.md derives the
gradient and the bounded step.
"""

from dataclasses import replace

import torch

from neuralmem.errors import UserError
from neuralmem.ops.autocast import to_autocast, without_autocast
from neuralmem.ops.checks import (
    check_count,
    check_floating,
    check_mask,
    check_reset,
    check_same_dtype,
    check_shape,
    choose_backend,
    unless_masked,
)
from neuralmem.ops.continuum.chunked import chunked
from neuralmem.ops.continuum.levels import Form
from neuralmem.ops.continuum.reference import reference
from neuralmem.typing import Tensor, Tensors

UNAVAILABLE = {"native": "the native kernels are for neural_memory only"}


def continuum_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    alpha: Tensor,
    weights: Tensors,
    sums: Tensors,
    form: Form,
    *,
    chunk_size: int,
    write_mask: Tensor | None = None,
    initial: tuple[Tensors, Tensors] | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensors, Tensors]:
    """Read tokens into the levels of a continuum memory and read it at every token, as it was when the chunk began.

        G_l = sum of theta_t grad |M_l(k_t) - v_t|^2 over the period of level l, gradients at its weights in the period
        W_l <- W_l - (sum of alpha_t) (W_l - W_l0) - G_l / (1 + c_l)                     at the period's end

    c_l, of each matrix, bounds the curvature of that sum along G_l (README.md). A period ends with the chunk after
    which it has no room for another. Computed in promote_types(dtype, float32).

    Args:
        q, k, v: [B, T, H, D], of one dtype
        theta, alpha: [B, T, H, learning levels], inner learning rate and forget fraction, over the period each
        weights: two per learning level, fastest first, [B, H, 2 h, D] and [B, H, D, h]
        sums: three per learning level whose period is longer than a chunk: gradients like its weights, and [B, H, 1, 4]
        form: first weights, norms, periods
        chunk_size: tokens per chunk; every period is a multiple of it
        write_mask: Bool [B, T]; False tokens are read but write nothing
        initial: weights and sums that a reset goes back to
        reset: Bool [B, T], True only at multiples of chunk_size
        checkpoint_every: chunks between boundary states that backward keeps
        backend: "auto", "reference" or "chunked"; NEURALMEM_BACKEND overrides "auto"

    Returns:
        y [B, T, H, D] in q's dtype, weights and sums after the last token; a chunk left short has ended.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> first = (torch.randn(1, 1, 12, 4), torch.zeros(1, 1, 4, 6))
        >>> form = Form((8,), (first,), (torch.ones(4),), residual=True)
        >>> k, v, gate = torch.randn(1, 8, 1, 4), torch.randn(1, 8, 1, 4), torch.ones(1, 8, 1, 1) / 8
        >>> y, after, _ = continuum_memory(k, k, v, gate, 0 * gate, first, (), form, chunk_size=8)
        >>> again = evaluate_continuum(k, after, form)
        >>> bool((again - v).norm() < (y - v).norm())
        True
    """
    _check(q, k, v, theta, alpha, weights, sums, form, chunk_size, write_mask, reset, initial)
    check_count("checkpoint_every", checkpoint_every)
    chosen = choose_backend(backend, ("chunked", "reference"), UNAVAILABLE)
    k, v = unless_masked(k, write_mask), unless_masked(v, write_mask)
    theta, alpha = unless_masked(theta, write_mask), unless_masked(alpha, write_mask)
    dtype, wide, (rounded,) = q.dtype, torch.promote_types(q.dtype, torch.float32), to_autocast(q)
    q, k, v, theta, alpha = (x.to(wide) for x in (q, k, v, theta, alpha))
    run = reference if chosen == "reference" else chunked
    with without_autocast(q.device.type):
        y, weights, sums = run(
            q,
            k,
            v,
            theta,
            alpha,
            weights,
            sums,
            replace(form, operand=rounded.dtype),
            chunk_size=chunk_size,
            write_mask=write_mask,
            initial=() if initial is None else (*initial[0], *initial[1]),
            reset=reset,
            checkpoint_every=checkpoint_every,
        )
    return y.to(dtype), weights, sums


def evaluate_continuum(q: Tensor, weights: Tensors, form: Form) -> Tensor:
    """Read at fixed weights.

    Args:
        q: [B, T, H, D]
        weights: two per learning level, as in `continuum_memory`
        form: first weights, norms, periods

    Returns:
        [B, T, H, D] in q's dtype.
    """
    wide, (rounded,) = torch.promote_types(q.dtype, torch.float32), to_autocast(q)
    with without_autocast(q.device.type):
        form = replace(form, operand=rounded.dtype)
        return form.read(q.to(wide).transpose(1, 2), form.pairs(weights)).transpose(1, 2).to(q.dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    alpha: Tensor,
    weights: Tensors,
    sums: Tensors,
    form: Form,
    chunk_size: int,
    write_mask: Tensor | None,
    reset: Tensor | None,
    initial: tuple[Tensors, Tensors] | None,
) -> None:
    check_shape("q", q, (*q.shape[:2], *form.first[0][0].shape[1:2], *form.gains[0].shape))
    check_floating(q=q, k=k, v=v, theta=theta, alpha=alpha)
    learning = [i for i, period in enumerate(form.periods) if period is not None]
    for name, x in (("k", k), ("v", v)):
        check_shape(name, x, q.shape)
        check_same_dtype(name, x, q)
    for name, gate in (("theta", theta), ("alpha", alpha)):
        check_shape(name, gate, (*q.shape[:3], len(learning)))
    check_count("chunk_size", chunk_size)
    if wrong := [period for period in form.periods if period is not None and period % chunk_size]:
        raise UserError(f"form.periods has {wrong[0]}; it must be a multiple of chunk_size={chunk_size}")
    own = [form.first[i] for i in learning]
    late = [(*form.first[i], form.first[i][0][..., :1, :1].expand(1, -1, 1, 4)) for i in form.late(chunk_size)]
    for name, given, wanted in (("weights", weights, own), ("sums", sums, late)):
        like = [x for group in wanted for x in group]
        if len(given) != len(like):
            raise UserError(f"{name} has {len(given)} tensors; it must have {len(like)}")
        for i, (x, y) in enumerate(zip(given, like, strict=True)):
            check_shape(f"{name}[{i}]", x, (len(q), *y.shape[1:]))
    check_mask("write_mask", write_mask, q.shape[:2])
    check_mask("reset", reset, q.shape[:2])
    if reset is not None and initial is None:
        raise UserError("reset is given without initial, the state to go back to")
    check_reset(reset, chunk_size)
