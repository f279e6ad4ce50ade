"""The update of Atlas a chunk at a time (ATLAS, 2505.23735, 6.4): exact, token by token.

All gradients of a chunk are taken at its first weights, so the surprises of all its tokens are one product of
coefficients with rank-one gradients. Special: Newton-Schulz is not linear, so surprises and weights are formed for
every token, which is what this op costs; `checkpoint_every` bounds how many chunks of them there are. See README.md.
"""

from typing import NamedTuple

import torch

from neuralmem.ops.chunk_loop import Stepped, run_chunks
from neuralmem.ops.decay import decay_products
from neuralmem.ops.muon_memory.direction import direction
from neuralmem.ops.muon_memory.polynomial import per_token
from neuralmem.ops.neural_memory.call import Call
from neuralmem.ops.neural_memory.chunked import gradient_factors
from neuralmem.ops.neural_memory.window import Members, members
from neuralmem.typing import Tensor, Tensors


class Gates(NamedTuple):
    """Of a chunk's tokens, [B, H, C]; masked ones change nothing."""

    theta: Tensor
    eta: Tensor | None
    keep: Tensor  # 1 - alpha


def gates(call: Call) -> list[Gates]:
    """Those of every chunk, in order."""
    theta, eta, keep = call.theta, call.eta, 1 - call.alpha
    if call.write_mask is not None:
        write = call.write_mask[..., None]
        theta, keep = torch.where(write, theta, 0), torch.where(write, keep, 1)
        eta = None if eta is None else torch.where(write, eta, 1)
    thetas, keeps = (x.transpose(1, 2).split(call.chunk_size, dim=2) for x in (theta, keep))
    etas = [None] * len(thetas) if eta is None else eta.transpose(1, 2).split(call.chunk_size, dim=2)
    return [Gates(*each) for each in zip(thetas, etas, keeps, strict=True)]


def surprises(chunk: Members, eta: Tensor | None, weights: Tensors, momentum: Tensors, call: Call) -> list[Tensor]:
    """S_t = e_t S_0 + sum_s (E G)_ts g_s of every token t of a chunk, per layer [B, H, C, D_out, D_in]."""
    inputs, deltas = gradient_factors(chunk.written, weights, call)
    assert chunk.gamma is not None
    push = chunk.gamma
    if eta is not None:
        over = decay_products(eta)
        push = over @ push
        since = (eta[..., :1] * over[..., 0])[..., None, None]
    each = []
    for i, (h, delta) in enumerate(zip(inputs, deltas, strict=True)):
        # Not rounded to bf16: Newton-Schulz would lift the noise, 0.4% of the norm, to the length of everything else.
        written = (push[..., None] * delta[:, :, None]).mT @ h[:, :, None]
        each.append(written if eta is None else since * momentum[i][:, :, None] + written)
    return each


def weights_after(weights: Tensor, steps: Tensor, gate: Gates, rows: slice) -> Tensor:
    """W_t = beta_t W_0 - sum_s A_ts theta_s step_s of some tokens t of a chunk, [B, H, rows, D_out, D_in]."""
    over = decay_products(gate.keep)
    beta = (gate.keep[..., :1] * over[..., 0])[..., rows, None, None]
    write = (over * gate.theta[..., None, :])[..., rows, :]
    return beta * weights[:, :, None] - (write @ steps.flatten(-2)).unflatten(-1, weights.shape[-2:])


def chunked(call: Call, muon: bool) -> tuple[Tensor, Tensors, Tensors]:
    """The update in chunks: y [B, T, H, D], weights and momentum after the last token."""
    total, layers, size = call.q.shape[1], len(call.weights), call.chunk_size
    if total == 0:
        return torch.empty_like(call.queries()), call.weights, call.momentum
    q = call.queries().transpose(1, 2).split(size, dim=2)  # [B, H, C, D] each
    chunks, gate, form = members(call), gates(call), per_token(call.form)

    def step(start: int, stop: int, state: Tensors) -> Stepped:
        weights, momentum = call.restart(start, state[:layers], state[layers:])
        i = start // size
        surprise = surprises(chunks[i], gate[i].eta, weights, momentum, call)
        each = [
            weights_after(w, direction(s, muon), gate[i], slice(None)) for w, s in zip(weights, surprise, strict=True)
        ]
        y = form.evaluate(tuple(each), q[i][..., None, :])[..., 0, :]
        # Copies: a view would keep the weights of every token for as long as the state lives.
        return y, tuple(x[:, :, -1].clone() for x in (*each, *(surprise if momentum else ())))

    y, state = run_chunks(step, (*call.weights, *call.momentum), total, size, call.checkpoint_every)
    return y.transpose(1, 2), state[:layers], state[layers:]


def decode(call: Call, muon: bool) -> Tensor:
    """y [B, 1, H, D] of one query. k and v: one chunk's [B, n, H, D]. Every surprise is formed, of the weights one."""
    q, weights = call.queries().transpose(1, 2), call.weights
    if call.k.shape[1]:
        (chunk,), (gate,) = members(call), gates(call)
        surprise = surprises(chunk, gate.eta, weights, call.momentum, call)
        last = slice(-1, None)
        weights = tuple(
            weights_after(w, direction(s, muon), gate, last)[:, :, 0] for w, s in zip(weights, surprise, strict=True)
        )
    return call.form.evaluate(weights, q).transpose(1, 2)
