"""The Titans update as the paper writes it: one token at a time, gradients by autograd, no speed.

S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2      Titans (2501.00663) Eq. 10, 14; gradient at the chunk's start, 3.2
W_t = (1 - alpha_t) W_{t-1} + S_t                       Eq. 13
y_t = M_{W_t}(q_t)                                      Eq. 15

Everything else in this folder is measured against this file.
"""

import torch
from torch.func import grad, vmap

from neuralmem.ops.neural_memory.mlp import MemoryForm
from neuralmem.typing import Tensor, Tensors


def reference(
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
) -> tuple[Tensor, Tensors, Tensors | None]:
    """The token loop. Arguments as in `neural_memory`; all tensors already in the state's dtype."""
    has_momentum = momentum is not None
    surprise = momentum if has_momentum else tuple(map(torch.zeros_like, weights))
    outputs = []
    for t in range(q.shape[1]):
        if t % chunk_size == 0:
            if reset is not None:
                weights = _choose(reset[:, t], initial[0], weights)
                surprise = _choose(reset[:, t], initial[1] or tuple(map(torch.zeros_like, weights)), surprise)
            anchor = weights
        gradient = _gradients(form, anchor, k[:, t], v[:, t])
        th, al = _gate(theta[:, t]), _gate(alpha[:, t])
        et = _gate(eta[:, t]) if has_momentum else 0.0
        new_surprise = tuple(et * s - th * g for s, g in zip(surprise, gradient, strict=True))
        new_weights = tuple((1 - al) * w + s for w, s in zip(weights, new_surprise, strict=True))
        if write_mask is None:
            surprise, weights = new_surprise, new_weights
        else:
            surprise = _choose(write_mask[:, t], new_surprise, surprise)
            weights = _choose(write_mask[:, t], new_weights, weights)
        outputs.append(form.evaluate(weights, q[:, t, :, None])[:, :, 0])  # [B, H, D]
    y = torch.stack(outputs, dim=1) if outputs else torch.empty_like(q)
    return y, weights, surprise if has_momentum else None


def _gate(x: Tensor) -> Tensor:
    return x[..., None, None]  # [B, H] -> [B, H, 1, 1]


def _choose(rows: Tensor, yes: Tensors, no: Tensors) -> Tensors:
    return tuple(torch.where(rows[:, None, None, None], a, b) for a, b in zip(yes, no, strict=True))


def _gradients(form: MemoryForm, anchor: Tensors, k: Tensor, v: Tensor) -> Tensors:
    """grad_W |M_W(k) - v|^2 at W = anchor, one per sample and head. k, v: [B, H, D]."""

    def loss(weights: Tensors, gain: Tensor | None, bias: Tensor | None, key: Tensor, value: Tensor) -> Tensor:
        one = MemoryForm(form.activation, form.residual, gain, bias)
        return (one.evaluate(weights, key[None])[0] - value).square().sum()

    norm = None if form.gain is None else 0
    over_heads = vmap(grad(loss), in_dims=(0, norm, norm, 0, 0))
    return vmap(over_heads, in_dims=(0, None, None, 0, 0))(anchor, form.gain, form.bias, k, v)
