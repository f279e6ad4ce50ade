"""The update of Atlas: the Omega rule whose steps are orthogonalised, over powers of keys and queries.

ATLAS (2505.23735) 6.2-6.4. `omega_memory` but for two things: theta stands outside, since Newton-Schulz forgets how
long a surprise is, and every token's surprise and weights are formed. Backends: `reference.py` is the paper's loop,
`chunked.py` the same function a chunk at a time. README.md derives one from the other.
"""

from dataclasses import replace

import torch

from neuralmem.errors import UserError
from neuralmem.ops.autocast import to_autocast, without_autocast
from neuralmem.ops.checks import choose_backend
from neuralmem.ops.muon_memory.call import check_coefficients, check_first_width, narrow, over_powers, prepare
from neuralmem.ops.muon_memory.chunked import chunked, decode
from neuralmem.ops.muon_memory.reference import reference
from neuralmem.ops.neural_memory.call import Call, History, Norm, State, check_weights, make_form
from neuralmem.ops.neural_memory.call import prepare as prepare_update
from neuralmem.ops.neural_memory.decode import prepare_decode
from neuralmem.ops.neural_memory.window import history_after
from neuralmem.typing import Tensor, Tensors

__all__ = ["decode_muon", "evaluate_polynomial", "muon_memory"]

UNAVAILABLE = {"native": "muon_memory has no compiled kernels"}


def muon_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    omega: Tensor,
    history: History | None = None,
    *,
    coefficients: Tensor | None = None,
    muon: bool = True,
    chunk_size: int = 64,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    write_mask: Tensor | None = None,
    initial: State | None = None,
    reset: Tensor | None = None,
    checkpoint_every: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensors, Tensors | None, History]:
    """Read tokens into a memory MLP by orthogonalised steps and read it back at every token.

    With g_i the gradient of |M(phi(k_i)) - v_i|^2 at the first weights of t's chunk, phi(x) = (a_1 x, ..., a_p x^p):

        S_t = eta_t S_{t-1} + sum_{j < c} omega_tj g_{t-j}
        W_t = (1 - alpha_t) W_{t-1} - theta_t NS(S_t)         of each matrix and head, by `newton_schulz`
        y_t = M_{W_t}(phi(q_t))

    t - j counts tokens that are written, as in `omega_memory`. Forms W_t and NS(S_t) of every token of a chunk: with
    gradients, `checkpoint_every=1` and a chunk_size well below 64 are usual.

    Args:
        q, k, v, theta, eta, alpha: as in `neural_memory`; theta has no part in S
        weights, momentum: as in `neural_memory`, but weights[0] and momentum[0] are [B, H, D_out, p D]; momentum is
            the sum of gradients, so it has the opposite sign of that of `neural_memory`
        omega, history: as in `omega_memory`
        coefficients: [H, p], a_1 to a_p; None is phi(x) = x
        muon: False is without NS, where S_t itself is the step
        chunk_size, activation, residual, norm, write_mask, initial, reset, checkpoint_every: as in `neural_memory`
        backend: "auto", "chunked" or "reference"

    Returns:
        y [B, T, H, D] in q's dtype; weights and momentum after the last token; the history as in `omega_memory`.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> import torch
        >>> x = torch.nn.functional.normalize(torch.randn(1, 32, 2, 8), dim=-1)
        >>> gate, omega = torch.full((1, 32, 2), 0.02), torch.full((1, 32, 2, 4), 0.25)
        >>> weights = (torch.randn(1, 2, 16, 16) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> powers = torch.tensor([[1.0, 0.5]] * 2)
        >>> y, weights, _, _ = muon_memory(
        ...     x, x, -x, gate, None, 0 * gate, weights, None, omega, coefficients=powers, chunk_size=8)
        >>> bool((y[:, -8:] + x[:, -8:]).norm() < (y[:, :8] + x[:, :8]).norm())
        True
        >>> [list(w.shape) for w in weights]
        [[1, 2, 16, 16], [1, 2, 8, 16]]
    """
    if omega.ndim == 4 and omega.shape[3] > chunk_size:
        raise UserError(f"omega has a window of {omega.shape[3]} tokens; it must be at most chunk_size={chunk_size}")
    call = prepare(
        prepare_update,
        q,
        k,
        v,
        theta,
        eta,
        alpha,
        weights,
        momentum,
        coefficients,
        chunk_size=chunk_size,
        activation=activation,
        residual=residual,
        norm=norm,
        write_mask=write_mask,
        initial=initial,
        reset=reset,
        checkpoint_every=checkpoint_every,
        omega=omega,
        history=history,
    )
    run = reference if choose_backend(backend, ("chunked", "reference"), UNAVAILABLE) == "reference" else chunked
    with without_autocast(q.device.type):
        y, weights, surprise = run(call, muon)
        after = history_after(call)
    return y.to(call.operand), weights, None if momentum is None else surprise, after


def decode_muon(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    omega: Tensor,
    history: History | None = None,
    *,
    coefficients: Tensor | None = None,
    muon: bool = True,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    write_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Read one query at the weights that the tokens of an unfinished chunk would leave, and write nothing.

    The last row of `muon_memory` for a chunk of n tokens. NS is of every one of them, so a token costs as n do.

    Args:
        q: [B, 1, H, D]
        k, v, theta, eta, alpha, omega: of the chunk's n tokens, n at least 0, [B, n, ...] as in `muon_memory`
        weights, momentum, history: as of the chunk's start
        coefficients, muon, activation, residual, norm, backend: as in `muon_memory`
        write_mask: Bool [B, n] or None

    Returns:
        [B, 1, H, D] in q's dtype.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> import torch
        >>> x = torch.nn.functional.normalize(torch.randn(1, 5, 2, 8, dtype=torch.float64), dim=-1)
        >>> gate, omega = torch.full((1, 5, 2), 0.01), torch.full((1, 5, 2, 3), 0.3)
        >>> weights = (torch.randn(1, 2, 16, 8) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> y, *_ = muon_memory(x, x, -x, gate, None, gate, weights, None, omega)
        >>> torch.allclose(decode_muon(x[:, -1:], x, -x, gate, None, gate, weights, None, omega), y[:, -1:])
        True
    """
    call = prepare(
        prepare_decode,
        q,
        k,
        v,
        theta,
        eta,
        alpha,
        weights,
        momentum,
        coefficients,
        activation=activation,
        residual=residual,
        norm=norm,
        write_mask=write_mask,
        omega=omega,
        history=history,
    )
    run = read_after if choose_backend(backend, ("chunked", "reference"), UNAVAILABLE) == "reference" else decode
    with without_autocast(q.device.type):
        return run(call, muon).to(call.operand)


def read_after(call: Call, muon: bool) -> Tensor:
    """`decode` by the definition: write every token, then read at what that left."""
    _, weights, _ = reference(replace(call, q=call.k), muon)
    return call.form.evaluate(weights, call.queries().transpose(1, 2)).transpose(1, 2)


def evaluate_polynomial(
    x: Tensor,
    weights: Tensors,
    coefficients: Tensor,
    *,
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
) -> Tensor:
    """M(phi(x)) at fixed weights: a read that writes nothing.

    Args:
        x: [B, T, H, D]
        weights, coefficients, activation, residual, norm: as in `muon_memory`

    Returns:
        [B, T, H, D] in x's dtype.

    Raises:
        UserError: a shape, dtype or device that does not fit, naming the argument.

    Example:
        >>> weights = (torch.zeros(1, 2, 16, 24), torch.zeros(1, 2, 8, 16))
        >>> x = torch.randn(1, 5, 2, 8)
        >>> torch.equal(evaluate_polynomial(x, weights, torch.ones(2, 3)), x)
        True
    """
    (x,) = to_autocast(x)
    if x.ndim != 4:
        raise UserError(f"x has shape {list(x.shape)}; it must be [B, T, H, D]")
    check_coefficients("x", x, coefficients)
    check_first_width(x, weights, coefficients)
    check_weights("x", x, narrow(weights, x.shape[3]))
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        form = over_powers(make_form(activation, residual, norm, dtype), coefficients, dtype)
        y = form.evaluate(tuple(w.to(dtype) for w in weights), x.to(dtype).transpose(1, 2))
    return y.transpose(1, 2).to(x.dtype)
