"""A memory MLP over elementwise powers of its input: phi(x) = (a_1 x, a_2 x^2, ..., a_p x^p), M(x) = x + LN(f(phi(x))).

After the polynomial features of ATLAS (2505.23735), which are all monomials; see README.md. Special: keys and queries
stay as narrow as values, outside and in every state, and the residual adds x itself.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from neuralmem.ops.neural_memory.mlp import MemoryForm
from neuralmem.typing import Tensor, Tensors


@dataclass(frozen=True)
class PolynomialForm(MemoryForm):
    """As `MemoryForm`, but the first matrix is [D_out, p D].

    Args:
        coefficients: [p, H, 1, 1], of the powers 1 to p
    """

    coefficients: Tensor | None = None

    def features(self, x: Tensor) -> Tensor:
        """phi(x): [..., T, D] -> [..., T, p D], the first powers first."""
        assert self.coefficients is not None
        return torch.cat([a * x**i for i, a in enumerate(self.coefficients.unbind(0), start=1)], dim=-1)

    def evaluate(self, weights: Tensors, x: Tensor) -> Tensor:
        f = self._of_features.evaluate(weights, self.features(x))
        return x + f if self.residual else f

    def backpropagate(
        self, weights: Tensors, k: Tensor, v: Tensor, *how: Any
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        # |x + f - v|^2 is the loss of f with the target v - x.
        target = v - k if self.residual else v
        return self._of_features.backpropagate(weights, self.features(k), target, *how)

    @property
    def _of_features(self) -> MemoryForm:
        return MemoryForm(self.activation, False, self.gain, self.bias, self.eps)


def per_token(form: MemoryForm) -> MemoryForm:
    """The same memory where every token has weights of its own: x [B, H, T, 1, D], weights [B, H, T, D_out, D_in]."""
    gain, bias = (None if x is None else x[:, None] for x in (form.gain, form.bias))
    form = replace(form, gain=gain, bias=bias)
    if isinstance(form, PolynomialForm) and form.coefficients is not None:
        return replace(form, coefficients=form.coefficients[..., None])
    return form
