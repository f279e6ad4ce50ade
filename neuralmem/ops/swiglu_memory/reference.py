"""The LaCT update as the paper writes it: one token at a time, gradients by autograd, no speed.

y_t = f_W(q_t),   f_W(x) = W_2 (silu(W_1 x) o (W_3 x))     W: the weights at the start of t's chunk
g   = grad_W sum_i theta_i (-f_W(k_i) . v_i)               over the chunk's tokens; LaCT (2505.23884)
U  <- mean_i(eta_i) U + g
W  <- rownorm(W - NS(U))                                   rownorm: each row as long as it was in the initial weights

Everything else in this folder is measured against this file.
"""

import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from neuralmem.ops.neural_memory.call import where_rows
from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.ops.swiglu_memory.call import SHORTEST_ROW, Call
from neuralmem.typing import Tensor, Tensors


def reference(call: Call) -> tuple[Tensor, Tensors, Tensors]:
    """The token loop: y [B, T, H, D], weights and momentum after the last token."""
    (q, k, v), weights, momentum, outputs = call.tokens(), call.weights, call.momentum, []
    total = q.shape[1]
    for start in range(0, total, call.chunk_size):
        weights, momentum = call.restart(start, weights, momentum)
        gradient = tuple(map(torch.zeros_like, weights))
        eta = torch.zeros_like(weights[0][..., 0, 0])
        real = torch.zeros_like(eta[:, 0])  # tokens of the chunk that write
        for t in range(start, min(start + call.chunk_size, total)):
            outputs.append(_evaluate(weights, q[:, t]))
            writes = torch.ones_like(real) if call.write_mask is None else call.write_mask[:, t].to(real.dtype)
            thetas = (call.theta[:, t] * writes[:, None, None]).unbind(-1)  # one per matrix
            of_token = _gradients(weights, k[:, t], v[:, t])
            gradient = tuple(
                g + theta[..., None, None] * new for g, theta, new in zip(gradient, thetas, of_token, strict=True)
            )
            eta = eta if call.eta is None else eta + writes[:, None] * call.eta[:, t]
            real = real + writes
        weights, momentum = _end_of_chunk(call, weights, momentum, gradient, eta, real)
    y = torch.stack(outputs, dim=1) if outputs else torch.empty_like(q)
    return y, weights, momentum


def _end_of_chunk(
    call: Call, weights: Tensors, momentum: Tensors, gradient: Tensors, eta: Tensor, real: Tensor
) -> tuple[Tensors, Tensors]:
    """eta: [B, H], the sum over the chunk; real: [B], the number of its tokens that write."""
    decay = (eta / real.clamp(min=1)[:, None])[..., None, None]
    step = gradient if call.eta is None else tuple(decay * u + g for u, g in zip(momentum, gradient, strict=True))
    pushed = tuple(map(orthogonal, step)) if call.muon else step
    written = []
    for weight, first, change in zip(weights, call.first, pushed, strict=True):
        row = weight - change
        length = row.square().sum(-1, keepdim=True).clamp(min=SHORTEST_ROW**2).sqrt()
        written.append(row / length * first.norm(dim=-1, keepdim=True))
    kept = where_rows(real > 0, tuple(written), weights)
    return kept, () if call.eta is None else where_rows(real > 0, step, momentum)


def orthogonal(x: Tensor) -> Tensor:
    return newton_schulz(x, coefficients="five")


def _evaluate(weights: Tensors, x: Tensor) -> Tensor:
    """f_W(x). weights: [..., D_out, D_in]; x: [..., D]."""
    first, second, third = weights
    x = x[..., None]
    return (second @ (F.silu(first @ x) * (third @ x)))[..., 0]


def _gradients(weights: Tensors, k: Tensor, v: Tensor) -> Tensors:
    """grad_W (-f_W(k) . v), one per sample and head. k, v: [B, H, D]."""
    loss = lambda weights, key, value: -(_evaluate(weights, key) * value).sum()
    return vmap(vmap(grad(loss)))(weights, k, v)
