"""Self-modifying Titans: memories that make their own keys, values, rates and targets, and are all written by them.

Nested Learning (2512.24695). Backends: `reference.py` is the token loop, `chunked.py` the same function by one
triangular solve per layer and chunk. README.md derives one from the other and lists what the paper leaves open.
"""

from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.checks import choose_backend
from neuralmem.ops.neural_memory.mlp import NORM_EPS
from neuralmem.ops.self_modifying.boxes import BOXES, Boxes, Made, join_boxes, split_boxes
from neuralmem.ops.self_modifying.call import make_boxes, prepare
from neuralmem.ops.self_modifying.chunked import chunked
from neuralmem.ops.self_modifying.reference import reference
from neuralmem.typing import Tensor, Tensors

__all__ = ["BOXES", "Boxes", "Made", "make_boxes", "self_modifying", "split_boxes"]

UNAVAILABLE = {"native": "the native kernels are for neural_memory only"}


def self_modifying(
    q: Tensor,
    key_input: Tensor,
    x: Tensor,
    weights: Tensors,
    gates: tuple[Tensor, Tensor],
    *,
    theta_max: float,
    chunk_size: int = 64,
    activation: str = "silu",
    residual: bool = True,
    norm: tuple[Tensor, Tensor] | None = None,
    norm_eps: float = NORM_EPS,
    dgd: bool = True,
    write_mask: Tensor | None = None,
    initial: Tensors | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensors]:
    """Read tokens into five memories, of which four make the keys, values and gates with which all five are written.

        k_t = unit(M_key(key_input_t)), v_t = M_value(x_t)
        theta_t = theta_max sigmoid(u . M_theta(x_t) + b), alpha_t = sigmoid(u' . M_alpha(x_t) + b')
        W <- (1 - alpha_t) W - theta'_t (W h_t + delta_t) h_t^T      every layer of every memory
        y_t = M_memory(q_t)

    delta_t h_t^T is the layer's gradient of |M(k_t) - M(v_t)|^2, the second M no variable of it; theta' is theta_t /
    (1 + theta_t |h_t|^2). Made values and gradients are those of a chunk's first weights. Without `dgd` the term W h_t
    h_t^T and the division fall away. Computed in promote_types(dtype, float32).

    Args:
        q: [B, T, H, D]
        key_input: [B, T, H, D], what the memory of keys reads
        x: [B, T, H, D], what those of values and gates read
        weights: L tensors [B, 5 H, D_out, D_in]; the boxes in the order of BOXES, each with H heads
        gates: vectors [2, H, D] and biases [2, H] that make theta and alpha
        theta_max: bound of theta
        chunk_size: tokens that share one anchor; chunks are aligned to the start of the call
        activation, residual, norm: as in `neural_memory`; the norm's gain and bias are [5 H, D]
        norm_eps: what the norm adds to the variance; with a larger one a small f is not blown up (README.md)
        dgd: delta gradient descent, or plain gradient descent with forgetting
        write_mask: Bool [B, T]; False tokens are read but write and decay nothing
        initial: like weights, what a reset goes back to
        reset: Bool [B, T], True only at multiples of chunk_size
        checkpoint_every: chunks between boundary states that backward keeps
        backend: "auto", "reference" or "chunked"; NEURALMEM_BACKEND overrides "auto"

    Returns:
        y [B, T, H, D] in q's dtype, and the weights after the last token.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> import torch
        >>> x, matrix = torch.randn(1, 6, 2, 4), torch.zeros(1, 10, 4, 4)
        >>> gates = torch.zeros(2, 2, 4), torch.zeros(2, 2)
        >>> y, (after,) = self_modifying(x, x, x, (matrix,), gates, theta_max=0.1, chunk_size=2)
        >>> y.shape, after.shape
        (torch.Size([1, 6, 2, 4]), torch.Size([1, 10, 4, 4]))
    """
    call = prepare(
        q,
        key_input,
        x,
        weights,
        gates,
        theta_max=theta_max,
        chunk_size=chunk_size,
        activation=activation,
        residual=residual,
        norm=norm,
        norm_eps=norm_eps,
        dgd=dgd,
        write_mask=write_mask,
        initial=initial,
        reset=reset,
        checkpoint_every=checkpoint_every,
    )
    run = reference if choose_backend(backend, ("chunked", "reference"), UNAVAILABLE) == "reference" else chunked
    with without_autocast(q.device.type):
        y, after = run(call)
    return y.transpose(1, 2).to(q.dtype), join_boxes(after)
