"""The Omega rule: every step descends the losses of the last c tokens, weighted, instead of the newest one's.

ATLAS (2505.23735), OmegaNet; with momentum, Atlas without Muon. Special: `neural_memory` in everything but the window,
which reaches back over chunk boundaries and calls, so the last c - 1 tokens are handed from call to call.
"""

from neuralmem.errors import UserError
from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.neural_memory.attentional_bias import AttentionalBias
from neuralmem.ops.neural_memory.call import History, Norm, State, prepare
from neuralmem.ops.neural_memory.chunked import chunked
from neuralmem.ops.neural_memory.decode import decode, prepare_decode, read_after
from neuralmem.ops.neural_memory.native import choose
from neuralmem.ops.neural_memory.reference import reference
from neuralmem.ops.neural_memory.window import history_after
from neuralmem.typing import Tensor, Tensors

BACKENDS = {"chunked": chunked, "reference": reference}
DECODERS = {"chunked": decode, "reference": read_after}


def omega_memory(
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
) -> tuple[Tensor, Tensors, Tensors | None, History]:
    """Read tokens into a memory MLP by the Omega rule and read it back at every token.

    With g_i the gradient of |M(k_i) - v_i|^2, or of another bias, at the first weights of t's chunk, in which i may
    stand or not:

        S_t = eta_t S_{t-1} - theta_t sum_{j < c} omega_tj g_{t-j}
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = M_{W_t}(q_t)

    t - j counts tokens that are written: a masked token is no step, stands in no window and takes no place in one. A
    reset ends the windows of all tokens before it. With omega of ones and c = 1 this is `neural_memory`.

    Args:
        q, k, v, theta, eta, alpha, weights, momentum: as in `neural_memory`
        omega: [B, T, H, c], the weight of the token j places before t; c at least 1 and at most chunk_size
        history: the last c - 1 tokens before the call, as it is returned; None for no tokens
        chunk_size, activation, residual, norm, write_mask, initial, reset, checkpoint_every, bias: as in
            `neural_memory`
        backend: "auto", "chunked" or "reference"

    Returns:
        y [B, T, H, D] in q's dtype; weights and momentum after the last token; and the last c - 1 tokens that were
        written since the last reset, newest last, with places that there is no token for in front, zero and not valid.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> import torch
        >>> x = torch.nn.functional.normalize(torch.randn(1, 96, 2, 8), dim=-1)
        >>> gate, omega = torch.full((1, 96, 2), 0.01), torch.full((1, 96, 2, 4), 0.25)
        >>> weights = (torch.randn(1, 2, 16, 8) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> y, _, _, history = omega_memory(x, x, -x, gate, None, 0 * gate, weights, None, omega, chunk_size=32)
        >>> bool((y[:, -32:] + x[:, -32:]).norm() < (y[:, :32] + x[:, :32]).norm())
        True
        >>> torch.equal(history.k, x[:, -3:])
        True
    """
    if omega.ndim == 4 and omega.shape[3] > chunk_size:
        raise UserError(f"omega has a window of {omega.shape[3]} tokens; it must be at most chunk_size={chunk_size}")
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
        omega=omega,
        history=history,
    )
    run = BACKENDS[choose(call, backend)]
    with without_autocast(q.device.type):
        y, weights, surprise = run(call)
        after = history_after(call)
    return y.to(call.operand), weights, None if momentum is None else surprise, after


def decode_omega(
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
    activation: str = "silu",
    residual: bool = True,
    norm: Norm | None = None,
    write_mask: Tensor | None = None,
    bias: AttentionalBias | None = None,
    backend: str = "auto",
) -> Tensor:
    """Read one query at the weights that the tokens of an unfinished chunk would leave, and write nothing.

    The last row of `omega_memory` for a chunk of n tokens, as `decode_memory` is that of `neural_memory`.

    Args:
        q, k, v, theta, eta, alpha, weights, momentum, activation, residual, norm, write_mask, bias: as in
            `decode_memory`
        omega: [B, n, H, c], the weights of the chunk's windows
        history: as of the chunk's start
        backend: "auto", "chunked" or "reference"

    Returns:
        [B, 1, H, D] in q's dtype.

    Raises:
        UserError: a shape, dtype, device or value that does not fit, naming the argument.

    Example:
        >>> import torch
        >>> x = torch.nn.functional.normalize(torch.randn(1, 5, 2, 8, dtype=torch.float64), dim=-1)
        >>> gate, omega = torch.full((1, 5, 2), 0.01), torch.full((1, 5, 2, 3), 0.3)
        >>> weights = (torch.randn(1, 2, 16, 8) / 8**0.5, torch.randn(1, 2, 8, 16) / 16)
        >>> y, *_ = omega_memory(x, x, -x, gate, None, gate, weights, None, omega)
        >>> torch.allclose(decode_omega(x[:, -1:], x, -x, gate, None, gate, weights, None, omega), y[:, -1:])
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
        omega=omega,
        history=history,
    )
    run = DECODERS[choose(call, backend)]
    with without_autocast(q.device.type):
        return run(call).to(call.operand)
