"""Q-K projection: queries moved into the span of the keys that a memory has been written with.

TNT (2511.07343, appendix C): a memory is trained on keys and read with queries, which may lie where it was never
trained. Special: no matrix per token, but a product of queries and keys under the causal mask beside a carried matrix.
Backends: `reference.py` is the loop, `chunked.py` the same function in chunks. Derivation: README.md.
"""

import torch

from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.checks import (
    check_count,
    check_floating,
    check_mask,
    check_reset,
    check_shape,
    check_tokens,
    choose_backend,
    unless_masked,
)
from neuralmem.ops.query_projection.chunked import chunked
from neuralmem.ops.query_projection.reference import reference
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensor

UNAVAILABLE = {"native": "the native kernels are for neural_memory only"}


def query_projection(
    q: Tensor,
    k: Tensor,
    carry: Tensor,
    *,
    chunk_size: int = 64,
    write_mask: Tensor | None = None,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Multiply every query with the sum of the projections on the keys up to it.

        Pi_t = Pi_{t-1} + k_t k_t^T / |k_t|^2
        y_t  = Pi_t q_t

    The plain product: it grows with the number of tokens (README.md), and giving it back the length of q is the
    caller's. The result does not depend on chunk_size. Computed in promote_types(dtype, float32).

    Args:
        q, k: [B, T, H, D], of one dtype; a key shorter than 0.01 is only scaled by 100, so one of zero adds nothing
        carry: [B, H, D, D], Pi before the first token
        chunk_size: tokens per masked product
        write_mask: Bool [B, T]; False tokens are projected but add nothing
        initial: [B, H, D, D], what a reset goes back to; None is zero, no keys
        reset: Bool [B, T], True only at multiples of chunk_size
        checkpoint_every: chunks between carries that backward keeps
        backend: "auto", "reference" or "chunked"; NEURALMEM_BACKEND overrides "auto"

    Returns:
        y [B, T, H, D] in q's dtype, and Pi after the last token.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> q, k = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]])
        >>> y, _ = query_projection(q.view(1, 2, 1, 2), k.view(1, 2, 1, 2), torch.zeros(1, 1, 2, 2))
        >>> y[0, :, 0]
        tensor([[3., 0.],
                [3., 4.]])
    """
    _check(q, k, carry, chunk_size, write_mask, initial, reset, checkpoint_every)
    chosen = choose_backend(backend, ("chunked", "reference"), UNAVAILABLE)
    wide = torch.promote_types(q.dtype, torch.float32)
    carry = carry.to(wide)
    run = reference if chosen == "reference" else chunked
    with without_autocast(q.device.type):
        # A masked key is one of zero, which adds nothing: neither to the sum nor, through it, to a gradient.
        y, carry = run(
            q.to(wide),
            unit(unless_masked(k, write_mask).to(wide)),
            carry,
            chunk_size=chunk_size,
            initial=torch.zeros_like(carry) if initial is None else initial.to(wide),
            reset=reset,
            checkpoint_every=checkpoint_every,
        )
    return y.to(q.dtype), carry


def _check(
    q: Tensor,
    k: Tensor,
    carry: Tensor,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    checkpoint_every: int | None,
) -> None:
    check_tokens(q, k, k)
    B, T, H, D = q.shape
    check_shape("carry", carry, (B, H, D, D))
    check_floating(q=q, carry=carry)
    check_count("chunk_size", chunk_size)
    check_count("checkpoint_every", checkpoint_every)
    check_mask("write_mask", write_mask, (B, T), q.device)
    check_mask("reset", reset, (B, T), q.device)
    if initial is not None:
        check_shape("initial", initial, carry.shape)
        check_floating(q=q, initial=initial)
    check_reset(reset, chunk_size)
