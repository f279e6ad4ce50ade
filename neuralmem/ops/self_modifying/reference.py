"""Self-modifying Titans as the paper writes it (2512.24695): one token at a time, gradients by autograd, no speed.

k_t = M_key(x_t), v_t = M_value(x_t), theta_t and alpha_t likewise; v^_t = M_box(v_t)            at the chunk's start
W <- W ((1 - alpha_t) I - theta_t h_t h_t^T) - theta_t grad |M_box(k_t) - v^_t|^2                of every layer and box
y_t = M_memory(q_t)                                                                              at the new weights

h_t is what enters the layer for k_t, and theta_t is there divided by 1 + theta_t |h_t|^2; without DGD the product with
h h^T and this division fall away.
"""

import torch
from torch.func import grad, vmap

from neuralmem.ops.neural_memory.mlp import ACTIVATIONS, MemoryForm
from neuralmem.ops.self_modifying.call import Call, choose_rows
from neuralmem.typing import Tensor, Tensors


def reference(call: Call) -> tuple[Tensor, Tensors]:
    """The token loop: y [B, H, T, D], weights [B, 5, H, D_out, D_in] after the last token."""
    boxes, weights, outputs = call.boxes, call.weights, []
    anchor = weights
    for t in range(call.q.shape[2]):
        if t % call.chunk_size == 0:
            anchor = weights = call.restart(t, weights)
        made = boxes.make(call.key_input[:, :, t : t + 1], call.x[:, :, t : t + 1], anchor)
        target = boxes.target(made.v, anchor)[..., 0, :]  # [B, 5, H, D]
        k = made.k[:, :, 0]  # [B, H, D]
        gradients = _gradients(boxes.form, anchor, k, target)
        alpha = made.alpha[:, None, :, 0, None, None]
        new = []
        for w, h, g in zip(weights, _layer_inputs(boxes.form, anchor, k), gradients, strict=True):
            theta = made.theta[:, None, :, 0, None, None]
            if call.dgd:
                theta = theta / (1 + theta * (h * h).sum(-1)[..., None, None])
            transition = w @ (h[..., :, None] * h[..., None, :]) if call.dgd else 0
            new.append((1 - alpha) * w - theta * transition - theta * g)
        write = None if call.write_mask is None else call.write_mask[:, t]
        weights = tuple(new) if write is None else choose_rows(write, tuple(new), weights)
        outputs.append(boxes.recall.evaluate(tuple(w[:, -1] for w in weights), call.q[:, :, t : t + 1]))
    return torch.cat(outputs, dim=2) if outputs else torch.empty_like(call.q), weights


def _layer_inputs(form: MemoryForm, weights: Tensors, k: Tensor) -> list[Tensor]:
    """What enters each layer of each memory for a key [B, H, D]: L tensors [B, 5, H, D_in]."""
    act, _ = ACTIVATIONS[form.activation]
    inputs = [k[:, None].expand(*weights[0].shape[:3], -1)]
    for w in weights[:-1]:
        inputs.append(act((w @ inputs[-1][..., None])[..., 0]))
    return inputs


def _gradients(form: MemoryForm, weights: Tensors, k: Tensor, target: Tensor) -> Tensors:
    """grad_W |M_W(k) - target|^2, one per sample, memory and head. k: [B, H, D]; target: [B, 5, H, D]."""

    def loss(weights: Tensors, gain: Tensor | None, bias: Tensor | None, key: Tensor, value: Tensor) -> Tensor:
        one = MemoryForm(form.activation, form.residual, gain, bias, form.eps)
        return (one.evaluate(weights, key[None])[0] - value).square().sum()

    norm = None if form.gain is None else 0
    over_heads = vmap(grad(loss), in_dims=(0, norm, norm, 0, 0))
    over_boxes = vmap(over_heads, in_dims=(0, norm, norm, None, 0))
    return vmap(over_boxes, in_dims=(0, None, None, 0, 0))(weights, form.gain, form.bias, k, target)
