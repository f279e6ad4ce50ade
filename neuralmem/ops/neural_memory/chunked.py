"""The Titans update a chunk at a time: exact, token by token, without a weight matrix per token.

All gradients of a chunk are taken at its first weights, so weights and momentum are affine in what the chunk started from
and in its rank-one gradients. Each layer's read is then one masked linear attention. Derivation: README.md.
Source: Titans (2501.00663) 3.2; dual form as in TTT (2407.04620), extended to momentum and forgetting.
"""

from typing import NamedTuple

import torch

from neuralmem import probe
from neuralmem.ops.chunk_loop import run_chunks
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS, MemoryForm
from neuralmem.typing import Tensor, Tensors


class Coefficients(NamedTuple):
    """How the state after token t is made of the chunk's first state and its gradients; fp32 or wider.

    W_t = beta_t W_0 + gamma_t S_0 - sum_s write_ts g_s        S_t = decay_t S_0 - sum_s push_ts g_s
    """

    beta: Tensor  # [..., C]
    gamma: Tensor | None  # [..., C]
    decay: Tensor | None  # [..., C]
    write: Tensor  # [..., C, C], theta included
    push: Tensor | None  # [..., C], the last row only, theta included


def decay_products(x: Tensor) -> Tensor:
    """Products over a range: out[t, s] = x[s+1] ... x[t], 1 on the diagonal, 0 above. [..., C] -> [..., C, C].

    A masked cumulative product rather than a ratio of two: finite and exact when a factor is 0 or the product underflows.

    Example:
        >>> decay_products(torch.tensor([5.0, 0.0, 3.0]))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 3., 1.]])
    """
    below = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril(-1)
    return torch.where(below, x[..., :, None], torch.ones_like(x[..., :1, None])).cumprod(-2).tril()


def coefficients(theta: Tensor, eta: Tensor | None, alpha: Tensor, write: Tensor | None) -> Coefficients:
    """Gates [..., C] of a chunk to its coefficients. `write` Bool [..., C]: False rows are exact no-ops."""
    keep = 1 - alpha
    if write is not None:
        theta, keep = torch.where(write, theta, 0), torch.where(write, keep, 1)
        eta = None if eta is None else torch.where(write, eta, 1)
    beta, over_weights = keep.cumprod(-1), decay_products(keep)
    if eta is None:
        return Coefficients(beta, None, None, over_weights * theta[..., None, :], None)
    if write is not None:
        over_weights = over_weights * write[..., None, :]
    decay, over_momentum = eta.cumprod(-1), decay_products(eta)
    gamma = (over_weights @ decay[..., None])[..., 0]
    both = (over_weights @ over_momentum) * theta[..., None, :]
    return Coefficients(beta, gamma, decay, both, over_momentum[..., -1, :] * theta)


def chunk_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c: Coefficients,
    weights: Tensors,
    momentum: Tensors | None,
    form: MemoryForm,
    operand: torch.dtype,
) -> tuple[Tensor, Tensors, Tensors | None]:
    """One chunk. q, k, v: [B, H, C, D]; coefficients over [B, H]; state [B, H, D_out, D_in] -> y, state."""

    def matmul(a: Tensor, b: Tensor) -> Tensor:
        return (a.to(operand) @ b.to(operand)).to(v.dtype)

    inputs, deltas, error = form.backpropagate(weights, k, v, matmul)
    probe.observe("surprise", error.square().sum(-1))
    act, _ = ACTIVATIONS[form.activation]
    x = q
    for layer, (weight, h, delta) in enumerate(zip(weights, inputs, deltas, strict=True)):
        if layer:
            x = act(x)
        u = matmul(c.beta[..., None] * x, weight.mT) - matmul(c.write * matmul(x, h.mT), delta)
        if momentum is not None:
            u = u + matmul(c.gamma[..., None] * x, momentum[layer].mT)
        x = u
    y = form.finish(x, q)

    last = [None if a is None else a[..., -1, None, None] for a in (c.beta, c.gamma, c.decay)]
    written = _outer_sums(matmul, deltas, inputs, c.write[..., -1, :])
    if momentum is None:
        return y, tuple(last[0] * w - d for w, d in zip(weights, written, strict=True)), None
    pushed = _outer_sums(matmul, deltas, inputs, c.push)
    new_weights = tuple(last[0] * w + last[1] * s - d for w, s, d in zip(weights, momentum, written, strict=True))
    return y, new_weights, tuple(last[2] * s - d for s, d in zip(momentum, pushed, strict=True))


def _outer_sums(matmul, deltas: list[Tensor], inputs: list[Tensor], row: Tensor) -> list[Tensor]:
    """sum_s row_s outer(delta_s, input_s) for every layer."""
    return [matmul((row[..., None] * delta).mT, h) for delta, h in zip(deltas, inputs, strict=True)]


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor | None,
    alpha: Tensor,
    weights: Tensors,
    momentum: Tensors | None,
    *,
    form: MemoryForm,
    chunk_size: int,
    write_mask: Tensor | None,
    initial: tuple[Tensors, Tensors | None] | None,
    reset: Tensor | None,
    checkpoint_every: int | None,
    operand: torch.dtype | None = None,
) -> tuple[Tensor, Tensors, Tensors | None]:
    """The update in chunks. Arguments as in `neural_memory`; q, k, v in the state's dtype, matmuls in `operand`."""
    total, layers = q.shape[1], len(weights)
    if total == 0:
        return torch.empty_like(q), weights, momentum
    operand = operand or q.dtype
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, D]
    gates = [None if x is None else x.transpose(1, 2) for x in (theta, eta, alpha)]  # [B, H, T]

    def step(start: int, stop: int, state: Tensors) -> tuple[Tensor, Tensors]:
        weights, momentum, here = state[:layers], state[layers:] or None, slice(start, stop)
        if reset is not None:
            weights, momentum = _restart(reset[:, start], initial, weights, momentum)
        write = None if write_mask is None else write_mask[:, None, here]
        c = coefficients(*(None if x is None else x[..., here] for x in gates), write)
        y, weights, momentum = chunk_step(
            q[:, :, here], k[:, :, here], v[:, :, here], c, weights, momentum, form, operand
        )
        return y, (*weights, *(momentum or ()))

    y, state = run_chunks(step, (*weights, *(momentum or ())), total, chunk_size, checkpoint_every)
    return y.transpose(1, 2), state[:layers], state[layers:] or None


def _restart(
    rows: Tensor, initial: tuple[Tensors, Tensors | None], weights: Tensors, momentum: Tensors | None
) -> tuple[Tensors, Tensors | None]:
    """Rows Bool [B] go back to the initial state; no gradient crosses for them."""
    rows = rows[:, None, None, None]
    weights = tuple(torch.where(rows, a, b) for a, b in zip(initial[0], weights, strict=True))
    if momentum is not None:
        momentum = tuple(torch.where(rows, a, b) for a, b in zip(initial[1], momentum, strict=True))
    return weights, momentum
