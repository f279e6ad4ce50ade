"""The Titans update as the paper writes it: one token at a time, gradients by autograd, no speed.

S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2     Titans (2501.00663) Eq. 10, 14; gradient at the chunk's start
W_t = (1 - alpha_t) W_{t-1} + S_t                       Eq. 13
y_t = M_{W_t}(q_t)                                      Eq. 15

Everything else in this folder is measured against this file.
"""

import torch
from torch.func import grad, vmap

from neuralmem.ops.neural_memory.call import Call, where_rows
from neuralmem.ops.neural_memory.mlp import MemoryForm
from neuralmem.typing import Tensor, Tensors


def reference(call: Call) -> tuple[Tensor, Tensors, Tensors]:
    """The token loop: y [B, T, H, D], weights and momentum after the last token."""
    (q, k, v), weights, outputs = call.tokens(), call.weights, []
    surprise = call.momentum or tuple(map(torch.zeros_like, weights))
    anchor = weights
    for t in range(q.shape[1]):
        if t % call.chunk_size == 0:
            if call.reset is not None:
                weights = where_rows(call.reset[:, t], call.first_weights, weights)
                first = call.first_momentum or tuple(map(torch.zeros_like, weights))
                surprise = where_rows(call.reset[:, t], first, surprise)
            anchor = weights
        gradient = _gradients(call.form, anchor, k[:, t], v[:, t])
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


def _gradients(form: MemoryForm, anchor: Tensors, k: Tensor, v: Tensor) -> Tensors:
    """grad_W |M_W(k) - v|^2 at W = anchor, one per sample and head. k, v: [B, H, D]."""

    def loss(weights: Tensors, gain: Tensor | None, bias: Tensor | None, key: Tensor, value: Tensor) -> Tensor:
        one = MemoryForm(form.activation, form.residual, gain, bias)
        return (one.evaluate(weights, key[None])[0] - value).square().sum()

    norm = None if form.gain is None else 0
    over_heads = vmap(grad(loss), in_dims=(0, norm, norm, 0, 0))
    return vmap(over_heads, in_dims=(0, None, None, 0, 0))(anchor, form.gain, form.bias, k, v)
