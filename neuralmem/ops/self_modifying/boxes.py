"""The five memories of self-modifying Titans (2512.24695): what each makes of a token, and what they have in common.

The paper writes M_box with box in {k, v, eta, alpha, memory}; its eta is theta here. All are one MLP with weights of
its own, batched along an axis of five in front of the heads: states are [B, 5, H, D_out, D_in] inside this folder.
"""

from dataclasses import dataclass, replace

import torch

from neuralmem.ops.neural_memory.mlp import MemoryForm
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensor, Tensors

BOXES = ("key", "value", "theta", "alpha", "memory")


@dataclass(frozen=True)
class Made:
    """What the first four memories make of tokens.

    Args:
        k: [B, H, T, D], of unit length
        v: [B, H, T, D]
        theta, alpha: [B, H, T]
    """

    k: Tensor
    v: Tensor
    theta: Tensor
    alpha: Tensor


@dataclass(frozen=True)
class Boxes:
    """What reading does not change: the MLP's form, the heads that make a gate of a memory's answer, theta's bound.

    Args:
        form: activation, residual and norm; gain and bias [5, H, 1, D], or None
        heads: two per gate, [2, H, D]: theta's and alpha's
        biases: [2, H]
        theta_max: theta is this times a sigmoid
    """

    form: MemoryForm
    heads: Tensor
    biases: Tensor
    theta_max: float

    @property
    def recall(self) -> MemoryForm:
        """The form of the last box, the memory that is read."""
        if self.form.gain is None or self.form.bias is None:
            return self.form
        return replace(self.form, gain=self.form.gain[-1], bias=self.form.bias[-1])

    def make(self, key_input: Tensor, x: Tensor, weights: Tensors) -> Made:
        """Keys from `key_input`, values and gates from `x`, both [B, H, T, D]; weights L times [B, 5, H, out, in]."""
        gain, bias = self.form.gain, self.form.bias
        form = self.form
        if gain is not None and bias is not None:
            form = replace(form, gain=gain[:-1], bias=bias[:-1])
        inputs = torch.stack([key_input, x, x, x], dim=1)
        k, v, *answers = form.evaluate(tuple(w[:, :-1] for w in weights), inputs).unbind(1)
        logits = [
            (answer * head[:, None]).sum(-1) + bias[:, None]
            for answer, head, bias in zip(answers, self.heads, self.biases, strict=True)
        ]
        return Made(unit(k), v, self.theta_max * logits[0].sigmoid(), logits[1].sigmoid())

    def target(self, v: Tensor, weights: Tensors) -> Tensor:
        """What every memory is to answer to the key: its own answer to the value. [B, H, T, D] -> [B, 5, H, T, D]."""
        return self.form.evaluate(weights, v[:, None])


def split_boxes(weights: Tensors) -> Tensors:
    """[B, 5 H, D_out, D_in] -> [B, 5, H, D_out, D_in]."""
    return tuple(w.unflatten(1, (len(BOXES), -1)) for w in weights)


def join_boxes(weights: Tensors) -> Tensors:
    """[B, 5, H, D_out, D_in] -> [B, 5 H, D_out, D_in]."""
    return tuple(w.flatten(1, 2) for w in weights)
