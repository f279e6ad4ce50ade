"""The update of a neural memory: read a text, write it into the weights of a small MLP, read it back at every token.

Titans (2501.00663) Eq. 8-18, with the gradient anchor at each chunk's first weights. Backends: `reference.py` is the
paper's loop, `chunked.py` the same function a chunk at a time, `native.py` that by compiled kernels. README.md derives
one from the other.
"""

import torch

from neuralmem.errors import UserError
from neuralmem.ops.autocast import to_autocast, without_autocast
from neuralmem.ops.neural_memory.attentional_bias import L2, AttentionalBias, Huber, Lp
from neuralmem.ops.neural_memory.call import History, Norm, State, check_weights, make_form, prepare
from neuralmem.ops.neural_memory.chunked import chunked
from neuralmem.ops.neural_memory.decode import decode, prepare_decode, read_after
from neuralmem.ops.neural_memory.mlp import NORM_EPS
from neuralmem.ops.neural_memory.native import choose, native, native_decode
from neuralmem.ops.neural_memory.omega import decode_omega, omega_memory
from neuralmem.ops.neural_memory.reference import reference
from neuralmem.typing import Tensor, Tensors

__all__ = [
    "L2",
    "AttentionalBias",
    "History",
    "Huber",
    "Lp",
    "decode_memory",
    "decode_omega",
    "evaluate_memory",
    "neural_memory",
    "omega_memory",
]

BACKENDS = {"native": native, "chunked": chunked, "reference": reference}
DECODERS = {"native": native_decode, "chunked": decode, "reference": read_after}


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    chunk_size: int = 64,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    write_mask: Tensor | None = None,
    initial: State | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    bias: AttentionalBias | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensors, Tensors | None]:
    """Read tokens into a memory MLP and read it back at every token.

    With M(x) = x + f(x), f(x) = W_L act(... act(W_1 x)), and every gradient of a chunk taken at the chunk's first
    weights:

        S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = M_{W_t}(q_t)

    State, gates and norm are computed in promote_types(dtype, float32). Differentiable in every tensor: any number of
    times by "chunked" and "reference", once by "native".

    Args:
        q, k, v: [B, T, H, D], of one dtype; under autocast they are cast to its dtype
        theta: [B, T, H], inner learning rate
        eta: [B, T, H], surprise decay in [0, 1]; None together with `momentum` for a memory without momentum
        alpha: [B, T, H], forget fraction in [0, 1]
        weights: L tensors [B, H, D_out, D_in], the state before the first token
        momentum: like `weights`, or None
        chunk_size: tokens that share one gradient anchor, counted from the start of the call
        activation: "silu", "gelu" (exact), "gelu_tanh" or "identity"
        residual: M(x) = x + f(x), else f(x)
        norm: None, or (gain, bias) [H, D]: f becomes LN(f) * gain + bias; the inner loop never changes them
        write_mask: Bool [B, T]; False tokens are read but write nothing, decay nothing, move no momentum, whatever
            their k and v hold
        initial: (weights, momentum) that a reset goes back to; its momentum may be None for zero
        reset: Bool [B, T], True only at multiples of chunk_size: there the state becomes `initial` before the token.
            Elsewhere it is an error, or, under torch.compile, which cannot look, ignored
        checkpoint_every: chunks between boundary states that backward keeps; it recomputes what lies between. None:
            the states before all n chunks, by "chunked" with everything between. With sqrt(n) they are 2 sqrt(n)
            states, the least, for one more pass over the chunks ("native" recomputes the inside of a chunk anyway)
        bias: the inner loss of e = M(k) - v: None or L2() for |e|^2, Lp(p), or Huber(delta) with delta [B, T, H]; other
            than |e|^2 by "chunked" and "reference"
        backend: "auto", "reference", "chunked" or "native"; NEURALMEM_BACKEND overrides "auto". "auto" is native on a
            CPU where the kernels are built and can run the call, and on GPUs on which they are known to pass their
            tests. For second derivatives name "chunked"

    Returns:
        y [B, T, H, D] in q's dtype, and weights and momentum after the last token.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(1, 96, 2, 8), dim=-1)
        >>> gate = torch.full((1, 96, 2), 0.01)
        >>> weights = (torch.randn(1, 2, 16, 8) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> y, after, momentum = neural_memory(x, x, -x, gate, None, 0 * gate, weights, None, chunk_size=32)
        >>> bool((y[:, -32:] + x[:, -32:]).norm() < (y[:, :32] + x[:, :32]).norm())
        True
    """
    call = prepare(
        q,
        k,
        v,
        theta,
        eta,
        alpha,
        weights,
        momentum,
        chunk_size=chunk_size,
        activation=activation,
        residual=residual,
        norm=norm,
        write_mask=write_mask,
        initial=initial,
        reset=reset,
        checkpoint_every=checkpoint_every,
        bias=bias,
    )
    run = BACKENDS[choose(call, backend)]
    with without_autocast(q.device.type):
        y, weights, surprise = run(call)
    return y.to(call.operand), weights, None if momentum is None else surprise


def decode_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    write_mask: Tensor | None = None,
    bias: AttentionalBias | None = None,
    backend: str = "auto",
) -> Tensor:
    """Read one query at the weights that the tokens of an unfinished chunk would leave, and write nothing.

    The last row of `neural_memory` for a chunk of n tokens, at the cost of one row: what a stream that is read token by
    token needs between two chunk ends. Differentiable in every tensor.

    Args:
        q: [B, 1, H, D]; under autocast q, k and v are cast to its dtype
        k, v: [B, n, H, D] of q's dtype, the tokens since the chunk's start, n >= 0
        theta, eta, alpha: [B, n, H], their gates
        weights, momentum: the state at the chunk's start, as in `neural_memory`
        activation, residual, norm: as in `neural_memory`
        write_mask: Bool [B, n]; False tokens do not count, so rows may have different numbers of tokens
        bias: as in `neural_memory`, its settings [B, n, H]
        backend: as in `neural_memory`, but native too is differentiable any number of times

    Returns:
        [B, 1, H, D] in q's dtype.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(1, 5, 2, 8, dtype=torch.float64), dim=-1)
        >>> gate = torch.full((1, 5, 2), 0.01, dtype=torch.float64)
        >>> weights = (torch.randn(1, 2, 16, 8) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> y, *_ = neural_memory(x, x, -x, gate, None, gate, weights, None)
        >>> torch.allclose(decode_memory(x[:, -1:], x, -x, gate, None, gate, weights, None), y[:, -1:])
        True
    """
    call = prepare_decode(
        q,
        k,
        v,
        theta,
        eta,
        alpha,
        weights,
        momentum,
        activation=activation,
        residual=residual,
        norm=norm,
        write_mask=write_mask,
        bias=bias,
    )
    run = DECODERS[choose(call, backend)]
    with without_autocast(q.device.type):
        return run(call).to(call.operand)


def evaluate_memory(
    x: Tensor,
    weights: Tensors,
    *,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    norm_eps: float = NORM_EPS,
) -> Tensor:
    """M(x) at fixed weights: a read that writes nothing.

    Args:
        x: [B, T, H, D]
        weights: L tensors [B, H, D_out, D_in]
        activation, residual, norm: as in `neural_memory`
        norm_eps: what the norm adds to the variance; `neural_memory` has 1e-6

    Returns:
        [B, T, H, D] in x's dtype.

    Raises:
        UserError: a shape, dtype or device that does not fit, naming the argument.

    Example:
        >>> weights = (torch.zeros(1, 2, 16, 8), torch.zeros(1, 2, 8, 16))
        >>> x = torch.randn(1, 5, 2, 8)
        >>> torch.equal(evaluate_memory(x, weights), x)
        True
    """
    (x,) = to_autocast(x)
    if x.ndim != 4:
        raise UserError(f"x has shape {list(x.shape)}; it must be [B, T, H, D]")
    check_weights("x", x, weights)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        form = make_form(activation, residual, norm, dtype, norm_eps)
        y = form.evaluate(tuple(w.to(dtype) for w in weights), x.to(dtype).transpose(1, 2))
    return y.transpose(1, 2).to(x.dtype)
