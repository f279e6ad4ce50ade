"""The memory M itself, an MLP with one set of weights per sample and head: evaluation, and its gradient by hand.

M(x) = x + LN(f(x)) * gain + bias, f(x) = W_L act(... act(W_1 x)); residual and norm are optional.
Source: Titans (2501.00663) 3.1 and the choices of its follow-ups; gradients derived in README.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from neuralmem.typing import Tensor, Tensors

NORM_EPS = 1e-6


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    scale = math.sqrt(2 / math.pi)
    t = torch.tanh(scale * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * scale * (1 + 3 * 0.044715 * z * z)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, _silu_slope),
    "gelu": (F.gelu, _gelu_slope),
    "gelu_tanh": (lambda z: F.gelu(z, approximate="tanh"), _gelu_tanh_slope),
    "identity": (lambda z: z, torch.ones_like),
}
"""Name -> (activation, its derivative as a function of the pre-activation)."""


@dataclass(frozen=True)
class MemoryForm:
    """What kind of MLP the memory is: everything but its weights.

    Args:
        activation: a name of ACTIVATIONS
        residual: M(x) = x + f(x) rather than f(x)
        gain: [H, 1, D] of the LayerNorm on f's output, or None without norm
        bias: [H, 1, D], or None without norm
        eps: what the norm adds to f's variance
    """

    activation: str = "silu"
    residual: bool = True
    gain: Tensor | None = None
    bias: Tensor | None = None
    eps: float = NORM_EPS

    def finish(self, f: Tensor, x: Tensor) -> Tensor:
        """M(x) from f(x): norm, then residual. Both [B, H, T, D]."""
        if self.gain is not None and self.bias is not None:
            f = F.layer_norm(f, f.shape[-1:], eps=self.eps) * self.gain + self.bias
        return x + f if self.residual else f

    def evaluate(self, weights: Tensors, x: Tensor) -> Tensor:
        """M(x). weights: L tensors [B, H, D_out, D_in]; x: [B, H, T, D] -> [B, H, T, D]."""
        act, _ = ACTIVATIONS[self.activation]
        h = x
        for weight in weights[:-1]:
            h = act(h @ weight.mT)
        return self.finish(h @ weights[-1].mT, x)

    def backpropagate(
        self,
        weights: Tensors,
        k: Tensor,
        v: Tensor,
        slope_of_loss: Callable[[Tensor], Tensor],
        matmul: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The gradient of a loss of M(k) - v for every token at the same weights, as factors of rank one.

        The gradient of layer l at token s is outer(deltas[l][s], inputs[l][s]).

        Args:
            weights: L tensors [B, H, D_out, D_in]
            k, v: [B, H, T, D]
            slope_of_loss: M(k) - v to the loss's gradient with respect to M(k), both [B, H, T, D]
            matmul: the product of two factors

        Returns:
            inputs: L tensors [B, H, T, D_in], what enters each layer
            deltas: L tensors [B, H, T, D_out], the gradient with respect to each layer's pre-activation
            error: [B, H, T, D], M(k) - v
        """
        act, slope = ACTIVATIONS[self.activation]
        inputs, pre = [k], []
        for weight in weights[:-1]:
            pre.append(matmul(inputs[-1], weight.mT))
            inputs.append(act(pre[-1]))
        f = matmul(inputs[-1], weights[-1].mT)
        error = self.finish(f, k) - v
        delta = slope_of_loss(error)
        deltas = [delta if self.gain is None else self._through_norm(f, delta * self.gain)]
        for weight, z in zip(reversed(weights[1:]), reversed(pre), strict=True):
            deltas.append(matmul(deltas[-1], weight) * slope(z))
        return inputs, deltas[::-1], error

    def _through_norm(self, f: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to f from that with respect to the normalised f."""
        centred = f - f.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        hat = centred * rstd
        gradient = gradient - gradient.mean(-1, keepdim=True) - hat * (gradient * hat).mean(-1, keepdim=True)
        return gradient * rstd
