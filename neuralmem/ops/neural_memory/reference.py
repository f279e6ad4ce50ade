"""The Titans update as the paper writes it: one token at a time, gradients by autograd, no speed.

S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2     Titans (2501.00663) Eq. 10, 14; gradient at the chunk's start
W_t = (1 - alpha_t) W_{t-1} + S_t                       Eq. 13
y_t = M_{W_t}(q_t)                                      Eq. 15

With another bias the loss is that of Miras (2504.13173); with a window the gradient is the weighted sum over the last
tokens of the Omega rule, ATLAS (2505.23735). Everything else in this folder is measured against this file.
"""

from collections.abc import Iterator

import torch
from torch.func import vjp, vmap

from neuralmem.ops.neural_memory.call import Call, where_rows
from neuralmem.ops.neural_memory.mlp import MemoryForm
from neuralmem.typing import Tensor, Tensors


def reference(call: Call) -> tuple[Tensor, Tensors, Tensors]:
    """The token loop: y [B, T, H, D], weights and momentum after the last token."""
    q, weights, outputs = call.queries(), call.weights, []
    surprise = call.momentum or tuple(map(torch.zeros_like, weights))
    anchor = weights
    for t, window in enumerate(_windows(call)):
        if t % call.chunk_size == 0:
            if call.reset is not None:
                weights = where_rows(call.reset[:, t], call.first_weights, weights)
                first = call.first_momentum or tuple(map(torch.zeros_like, weights))
                surprise = where_rows(call.reset[:, t], first, surprise)
            anchor = weights
        each = [[_gate(gamma) * g for g in _gradients(call, anchor, *token)] for gamma, token in window]
        gradient = [sum(of_layer) for of_layer in zip(*each, strict=True)]
        theta, alpha = _gate(call.theta[:, t]), _gate(call.alpha[:, t])
        eta = 0.0 if call.eta is None else _gate(call.eta[:, t])
        new_surprise = tuple(eta * s - theta * g for s, g in zip(surprise, gradient, strict=True))
        new_weights = tuple((1 - alpha) * w + s for w, s in zip(weights, new_surprise, strict=True))
        if call.write_mask is None:
            surprise, weights = new_surprise, new_weights
        else:
            surprise = where_rows(call.write_mask[:, t], new_surprise, surprise)
            weights = where_rows(call.write_mask[:, t], new_weights, weights)
        outputs.append(call.form.evaluate(weights, q[:, t, :, None])[:, :, 0])  # [B, H, D]
    y = torch.stack(outputs, dim=1) if outputs else torch.empty_like(q)
    return y, weights, surprise if call.momentum else ()


def _gate(x: Tensor) -> Tensor:
    return x[..., None, None]  # [B, H] -> [B, H, 1, 1]


def _windows(call: Call) -> Iterator[list[tuple[Tensor, list[Tensor]]]]:
    """What every token's step is made of: Gamma [B, H] with k, v [B, H, D] and the bias's settings [B, H, 1]."""
    omega = torch.ones_like(call.theta)[..., None] if call.omega is None else call.omega
    written, yes = call.written(), torch.ones_like(omega[:, :1, 0, 0], dtype=torch.bool)
    past = [x[:, :0] for x in written] if call.history is None else list(call.past())
    real = yes[:, :0] if call.history is None else call.history.valid
    for t in range(omega.shape[1]):
        if call.reset is not None:
            real = real & ~call.reset[:, t, None]
        window = [torch.cat([old, new[:, t, None]], dim=1) for old, new in zip(past, written, strict=True)]
        there = torch.cat([real, yes], dim=1)
        gammas = omega[:, t].flip(-1) * there[:, None]  # [B, H, c], oldest first like the window
        yield [(gammas[..., j], [x[:, j] for x in window]) for j in range(omega.shape[3])]
        write = yes if call.write_mask is None else call.write_mask[:, t, None]
        past = [torch.where(write[..., None, None], x[:, 1:], old) for x, old in zip(window, past, strict=True)]
        real = torch.where(write, there[:, 1:], real)


def _gradients(call: Call, anchor: Tensors, k: Tensor, v: Tensor, *settings: Tensor) -> Tensors:
    """grad_W of the loss of M_W(k) - v at W = anchor, one per sample and head. k, v: [B, H, D]."""
    form = call.form

    def one(weights: Tensors, gain: Tensor | None, bias: Tensor | None, k: Tensor, v: Tensor, *own: Tensor) -> Tensors:
        memory = MemoryForm(form.activation, form.residual, gain, bias)
        answer, pull_back = vjp(lambda weights: memory.evaluate(weights, k[None])[0], weights)  # type: ignore[misc]
        (gradient,) = pull_back(call.bias.slope(answer - v, *own))
        return gradient

    norm, per_token = None if form.gain is None else 0, (0,) * (2 + len(settings))
    over_heads = vmap(one, in_dims=(0, norm, norm, *per_token))
    over_samples = vmap(over_heads, in_dims=(0, None, None, *per_token))
    return over_samples(anchor, form.gain, form.bias, k, v, *settings)
