"""The exact delta rule with forgetting: a linear memory whose error is taken at the current weights.

DeltaNet (2406.06484), delta gradient descent of Nested Learning (2512.24695, Eq. 57) with its proximal step, and, up to
where the decay stands, Gated DeltaNet (2412.06464). Backends: `reference.py` is the loop, `chunked.py` the same by one
triangular solve per chunk. README.md derives one from the other.
"""

import torch

from neuralmem.errors import UserError, nearest
from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.checks import (
    check_count,
    check_floating,
    check_mask,
    check_reset,
    check_same_dtype,
    check_shape,
    check_tokens,
    choose_backend,
    unless_masked,
)
from neuralmem.ops.delta_descent.chunked import chunked
from neuralmem.ops.delta_descent.reference import reference
from neuralmem.typing import Tensor

UNAVAILABLE = {"native": "the native kernels are for neural_memory only"}
READS = ("after", "before")


def delta_descent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    alpha: Tensor,
    weights: Tensor,
    *,
    chunk_size: int = 64,
    write_mask: Tensor | None = None,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    proximal: bool = False,
    read: str = "after",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Read tokens into a linear memory by the delta rule and read it back at every token.

        M_t = (1 - alpha_t) M_{t-1} - theta_t (M_{t-1} k_t - v_t) k_t^T
        y_t = M_t q_t                                  (read="before": M_{t-1} q_t)

    The loss is half the squared error, so theta = 1 with a unit key replaces what was stored under it;
    `neural_memory`'s theta is half of this one. The result does not depend on chunk_size. Computed in
    promote_types(dtype, float32).

    Args:
        q, k: [B, T, H, D_in], of one dtype
        v: [B, T, H, D_out], of the same
        theta: [B, T, H], inner learning rate
        alpha: [B, T, H], forget fraction in [0, 1]
        weights: [B, H, D_out, D_in]
        chunk_size: tokens per triangular solve
        write_mask: Bool [B, T]; False tokens are read but write and decay nothing
        initial: [B, H, D_out, D_in], what a reset goes back to
        reset: Bool [B, T], True only at multiples of chunk_size
        checkpoint_every: chunks between boundary states that backward keeps
        proximal: step by theta / (1 + theta |k|^2), where theta |M k - v|^2 + |M - M_{t-1}|^2 is least; stable for
            every theta >= 0
        read: "after" a token's own decay and write, or "before" them
        backend: "auto", "reference" or "chunked"; NEURALMEM_BACKEND overrides "auto"

    Returns:
        y [B, T, H, D_out] in q's dtype, and the weights after the last token.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> k, v = torch.eye(4).view(1, 4, 1, 4), torch.randn(1, 4, 1, 4)
        >>> one = torch.ones(1, 4, 1)
        >>> _, memory = delta_descent(k, k, v, one, 0 * one, torch.zeros(1, 1, 4, 4))
        >>> torch.allclose(memory[0, 0], v[0, :, 0].T)
        True
    """
    _check_tensors(q, k, v, theta, alpha, weights)
    _check_options(q, weights, chunk_size, write_mask, initial, reset, checkpoint_every, read)
    chosen = choose_backend(backend, ("chunked", "reference"), UNAVAILABLE)
    k, v = unless_masked(k, write_mask), unless_masked(v, write_mask)
    dtype = q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    run = reference if chosen == "reference" else chunked
    q, k, v, theta, alpha, weights = (x.to(wide) for x in (q, k, v, theta, alpha, weights))
    with without_autocast(q.device.type):
        y, weights = run(
            q,
            k,
            v,
            theta / (1 + theta * k.square().sum(-1)) if proximal else theta,
            alpha,
            weights,
            chunk_size=chunk_size,
            write_mask=write_mask,
            initial=None if initial is None else initial.to(wide),
            reset=reset,
            checkpoint_every=checkpoint_every,
            read=read,
        )
    return y.to(dtype), weights


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, alpha: Tensor, weights: Tensor) -> None:
    check_tokens(q, k, k, theta=theta, alpha=alpha)  # v apart, for its width may differ
    B, T, H, D_in = q.shape
    if weights.ndim != 4:
        raise UserError(f"weights has shape {list(weights.shape)}; it must be [{B}, {H}, D_out, {D_in}]")
    D_out = weights.shape[2]
    check_shape("weights", weights, (B, H, D_out, D_in))
    check_shape("v", v, (B, T, H, D_out))
    check_floating(q=q, v=v, weights=weights)
    check_same_dtype("v", v, q)


def _check_options(
    q: Tensor,
    weights: Tensor,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    checkpoint_every: int | None,
    read: str,
) -> None:
    check_count("chunk_size", chunk_size)
    check_count("checkpoint_every", checkpoint_every)
    check_mask("write_mask", write_mask, q.shape[:2])
    check_mask("reset", reset, q.shape[:2])
    if reset is not None and initial is None:
        raise UserError("reset is given without initial, the state to go back to")
    if initial is not None:
        check_shape("initial", initial, weights.shape)
        check_floating(q=q, initial=initial)
    check_reset(reset, chunk_size)
    if read not in READS:
        raise UserError(f"read is {read!r}; it must be one of {', '.join(READS)}{nearest(read, READS)}")
