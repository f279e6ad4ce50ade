"""The Titans update a chunk at a time: exact, token by token, without a weight matrix per token.

All gradients of a chunk are taken at its first weights, so weights and momentum are affine in what the chunk started
from and in its rank-one gradients. Each layer's read is then one masked linear attention. Derivation: README.md.
Source: Titans (2501.00663) 3.2; dual form as in TTT (2407.04620), extended to momentum and forgetting.
"""

from typing import NamedTuple

import torch

from neuralmem import probe
from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.ops.decay import decay_products
from neuralmem.ops.neural_memory.call import Call
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS
from neuralmem.ops.neural_memory.window import members
from neuralmem.typing import Tensor, Tensors


class Coefficients(NamedTuple):
    """How the state after token t is made of the chunk's first state and its gradients; fp32 or wider.

    W_t = beta_t W_0 + gamma_t S_0 - sum_s write_ts g_s        S_t = decay_t S_0 - sum_s push_ts g_s
    """

    beta: Tensor  # [..., C]
    gamma: Tensor | None  # [..., C]
    decay: Tensor | None  # [..., C]
    write: Tensor  # [..., C, members], theta included; the members are the chunk's tokens, or more with a window
    push: Tensor | None  # [..., members], the last row only, theta included

    def last(self) -> "Coefficients":
        """Those of the last token alone, as a chunk with one row."""
        gamma = None if self.gamma is None else self.gamma[..., -1:]
        decay = None if self.decay is None else self.decay[..., -1:]
        return Coefficients(self.beta[..., -1:], gamma, decay, self.write[..., -1:, :], self.push)

    def over(self, window: Tensor | None) -> "Coefficients":
        """Where g_s is not one token's gradient but a sum over members, weighted with window [..., C, members]."""
        if window is None:
            return self
        push = None if self.push is None else (self.push[..., None, :] @ window)[..., 0, :]
        return self._replace(write=self.write @ window, push=push)


def coefficients(theta: Tensor, eta: Tensor | None, alpha: Tensor, write: Tensor | None) -> Coefficients:
    """Gates [..., C] of a chunk to its coefficients. `write` Bool [..., C]: False rows are exact no-ops."""
    keep = 1 - alpha
    if write is not None:
        theta, keep = torch.where(write, theta, 0), torch.where(write, keep, 1)
        eta = None if eta is None else torch.where(write, eta, 1)
    over_weights = decay_products(keep)
    beta = keep[..., :1] * over_weights[..., 0]  # from before the first token on
    if eta is None:
        return Coefficients(beta, None, None, over_weights * theta[..., None, :], None)
    if write is not None:
        over_weights = over_weights * write[..., None, :]
    over_momentum = decay_products(eta)
    decay = eta[..., :1] * over_momentum[..., 0]
    gamma = (over_weights @ decay[..., None])[..., 0]
    both = (over_weights @ over_momentum) * theta[..., None, :]
    return Coefficients(beta, gamma, decay, both, over_momentum[..., -1, :] * theta)


def chunk_coefficients(call: Call) -> list[Coefficients]:
    """The coefficients of every chunk over [B, H]; those of whole chunks are computed at once."""
    size, total = call.chunk_size, call.k.shape[1]
    whole = total // size * size
    write = None if call.write_mask is None else call.write_mask[..., None]
    gates = [None if x is None else x.transpose(1, 2) for x in (call.theta, call.eta, call.alpha, write)]  # [B, H, T]

    def part(start: int, stop: int, *shape: int) -> Coefficients:
        return coefficients(*(None if x is None else x[..., start:stop].unflatten(-1, shape) for x in gates))  # type: ignore[arg-type]

    chunks: list[Coefficients] = []
    if whole:
        split = [None if x is None else x.unbind(2) for x in part(0, whole, -1, size)]
        for i in range(whole // size):
            chunks.append(Coefficients(*(None if x is None else x[i] for x in split)))  # type: ignore[arg-type]
    return chunks if whole == total else [*chunks, part(whole, total, total - whole)]


def gradient_factors(written: Tensors, weights: Tensors, call: Call) -> tuple[list[Tensor], list[Tensor]]:
    """Every member's gradient at `weights`, of layer l the outer product of deltas[l] and inputs[l]: inputs, deltas."""
    k, v, *settings = written
    inputs, deltas, error = call.form.backpropagate(weights, k, v, lambda e: call.bias.slope(e, *settings), call.matmul)
    surprise = error[:, :, call.reach :].square().sum(-1)  # of the chunk's own tokens
    probe.observe("surprise", surprise, tokens=2)  # always: a checkpoint compares what forward and backward save
    return inputs, deltas


def read(
    q: Tensor,
    c: Coefficients,
    inputs: list[Tensor],
    deltas: list[Tensor],
    weights: Tensors,
    momentum: Tensors,
    call: Call,
) -> Tensor:
    """M_{W_t}(q_t), row by row of the coefficients. q: [B, H, rows, D] -> the same."""
    act, _ = ACTIVATIONS[call.form.activation]
    matmul, x = call.matmul, q
    for layer, (weight, h, delta) in enumerate(zip(weights, inputs, deltas, strict=True)):
        if layer:
            x = act(x)
        u = matmul(c.beta[..., None] * x, weight.mT) - matmul(c.write * matmul(x, h.mT), delta)
        if c.gamma is not None:
            u = u + matmul(c.gamma[..., None] * x, momentum[layer].mT)
        x = u
    return call.form.finish(x, q)


def chunk_step(
    q: Tensor, written: Tensors, c: Coefficients, weights: Tensors, momentum: Tensors, call: Call
) -> tuple[Tensor, Tensors, Tensors]:
    """One chunk. q: [B, H, C, D]; written [B, H, members, ...]; coefficients over [B, H]; state -> y, state."""
    inputs, deltas = gradient_factors(written, weights, call)
    y = read(q, c, inputs, deltas, weights, momentum, call)

    def decayed(coefficient: Tensor, state: Tensors, row: Tensor) -> list[Tensor]:
        """What the chunk leaves of a state, plus what it wrote: sum_s row_s outer(delta_s, input_s) per layer."""
        written = (call.matmul((row[..., None] * delta).mT, h) for delta, h in zip(deltas, inputs, strict=True))
        return [coefficient[..., -1, None, None] * w - d for w, d in zip(state, written, strict=True)]

    kept = decayed(c.beta, weights, c.write[..., -1, :])
    if c.gamma is None or c.decay is None or c.push is None:
        return y, tuple(kept), ()
    last = c.gamma[..., -1, None, None]
    pushed = decayed(c.decay, momentum, c.push)
    return y, tuple(w + last * s for w, s in zip(kept, momentum, strict=True)), tuple(pushed)


def chunked(call: Call) -> tuple[Tensor, Tensors, Tensors]:
    """The update in chunks: y [B, T, H, D], weights and momentum after the last token."""
    total, layers, size = call.q.shape[1], len(call.weights), call.chunk_size
    if total == 0:
        return torch.empty_like(call.q), call.weights, call.momentum
    q = call.queries().transpose(1, 2).split(size, dim=2)  # [B, H, C, D] each
    coefficients, chunks = chunk_coefficients(call), members(call)

    def step(start: int, stop: int, state: Tensors) -> Stepped:
        weights, momentum = call.restart(start, state[:layers], state[layers:])
        i = start // size
        written, window = chunks[i]
        y, weights, momentum = chunk_step(q[i], written, coefficients[i].over(window), weights, momentum, call)
        return y, (*weights, *momentum)

    y, state = run_chunks(step, (*call.weights, *call.momentum), total, size, call.checkpoint_every)
    return y.transpose(1, 2), state[:layers], state[layers:]
