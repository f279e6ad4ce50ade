"""A SwiGLU network whose weights change once per large chunk, by a dot-product loss and rows of constant length.

LaCT, "Test-Time Training Done Right" (2505.23884). Backends: `reference.py` is the loop, `chunked.py` the same function
by gradients written out by hand. README.md derives one from the other.
"""

import torch

from neuralmem.errors import UserError
from neuralmem.ops.autocast import to_autocast, without_autocast
from neuralmem.ops.checks import choose_backend
from neuralmem.ops.swiglu_memory.call import check_weights, prepare
from neuralmem.ops.swiglu_memory.chunked import chunked, swiglu
from neuralmem.ops.swiglu_memory.reference import reference
from neuralmem.typing import Tensor, Tensors

UNAVAILABLE = {"native": "the native kernels are for neural_memory only"}


def swiglu_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    muon: bool = True,
    chunk_size: int = 2048,
    write_mask: Tensor | None = None,
    initial: Tensors | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensors, Tensors | None]:
    """Read tokens with a SwiGLU network, then write them into its weights, a chunk at a time.

    With f_W(x) = W_2 (silu(W_1 x) o (W_3 x)), for every chunk of tokens i, W and U as the chunk before left them:

        y_i = f_W(q_i)
        g   = grad_W sum_i theta_i (-f_W(k_i) . v_i)
        U  <- mean_i(eta_i) U + g
        W  <- rows of W - NS(U), each as long as in the initial weights

    A token sees what earlier chunks wrote and nothing of its own chunk, so something else has to see that far, as a
    sliding window of at least chunk_size does. The chunk that a call ends with is written like the others, shorter or
    not. State and gates are computed in promote_types(dtype, float32), factors of matrix products in q's dtype.
    Differentiable in every tensor, any number of times.

    Args:
        q, k, v: [B, T, H, D], of one dtype; under autocast they are cast to its dtype
        theta: [B, T, H, 3], inner learning rate of W_1, W_2 and W_3. A chunk's gradients are summed: without muon its
            sum over a chunk is the step
        eta: [B, T, H], share of the momentum that a chunk keeps, averaged over its tokens; None together with
            `momentum` for a memory without momentum
        weights: W_1 [B, H, D_h, D], W_2 [B, H, D, D_h] and W_3 [B, H, D_h, D], the state before the first token
        momentum: like `weights`, or None
        muon: orthogonalise what a chunk writes by Newton-Schulz; theta then weighs tokens of a chunk (and, with
            momentum, chunks) against each other, and its scale is lost
        chunk_size: tokens per update, counted from the start of the call
        write_mask: Bool [B, T]; False tokens are read but write nothing, whatever their k and v hold, and a chunk of
            none but these leaves weights and momentum as they are
        initial: like `weights`, the initial ones: they say how long a row is, and a reset goes back to them, with no
            momentum. None is `weights`
        reset: Bool [B, T], True only at multiples of chunk_size
        checkpoint_every: chunks between boundary states that backward keeps
        backend: "auto", "reference" or "chunked"; NEURALMEM_BACKEND overrides "auto"

    Returns:
        y [B, T, H, D] in q's dtype, and weights and momentum after the last token.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(1, 16, 2, 8), dim=-1)
        >>> theta, weights = torch.ones(1, 16, 2, 3), tuple(torch.randn(3, 1, 2, 8, 8).unbind())
        >>> _, after, _ = swiglu_memory(x, x, -x, theta, None, weights, None)
        >>> known = [torch.cosine_similarity(evaluate_swiglu(x, w), -x, dim=-1).mean() for w in (weights, after)]
        >>> bool(known[1] > known[0] + 0.2)
        True
    """
    call = prepare(
        q,
        k,
        v,
        theta,
        eta,
        weights,
        momentum,
        muon=muon,
        chunk_size=chunk_size,
        write_mask=write_mask,
        initial=initial,
        reset=reset,
        checkpoint_every=checkpoint_every,
    )
    run = reference if choose_backend(backend, ("chunked", "reference"), UNAVAILABLE) == "reference" else chunked
    with without_autocast(q.device.type):
        y, weights, after = run(call)
    return y.to(call.q.dtype), weights, None if momentum is None else after


def evaluate_swiglu(x: Tensor, weights: Tensors) -> Tensor:
    """f_W(x) = W_2 (silu(W_1 x) o (W_3 x)) at fixed weights: a read that writes nothing.

    Args:
        x: [B, T, H, D]; under autocast cast to its dtype
        weights: W_1 [B, H, D_h, D], W_2 [B, H, D, D_h] and W_3 [B, H, D_h, D]

    Returns:
        [B, T, H, D] in x's dtype.

    Raises:
        UserError: a shape, dtype or device that does not fit, naming the argument.

    Example:
        >>> weights = torch.zeros(1, 2, 16, 8), torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 16, 8)
        >>> evaluate_swiglu(torch.randn(1, 5, 2, 8), weights).shape
        torch.Size([1, 5, 2, 8])
    """
    (x,) = to_autocast(x)
    if x.ndim != 4:
        raise UserError(f"x has shape {list(x.shape)}; it must be [B, T, H, D]")
    check_weights(x, "weights", weights)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        y = swiglu(x.transpose(1, 2), tuple(w.to(dtype) for w in weights))
    return y.transpose(1, 2).to(x.dtype)
