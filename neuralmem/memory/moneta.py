"""Moneta: the error in the third power, what was accumulated scaled by its fourth norm (Miras 2504.13173; p, q = 3, 4).

A <- (1 - alpha) A - theta grad |M(k) - v|_3^3,  W = A / |A|_4^2 with a norm per matrix and head. No momentum.
"""

from typing import Any

from neuralmem.memory._retention import Retention
from neuralmem.ops import Lp
from neuralmem.typing import Tensor, Tensors

P, Q = 3.0, 4.0
FLOOR = 0.1  # of |A|_4^2, for the map is not scale invariant: as A goes to 0, W would go to infinity


class Moneta(Retention):
    """memory.momentum and depth do not apply."""

    def weights_of(self, accumulated: Tensor) -> Tensor:
        fourth = accumulated.pow(Q).sum((-2, -1), keepdim=True)
        return accumulated / fourth.pow((Q - 2) / Q).clamp(min=FLOOR)

    def _options(self, written: Tensors) -> dict[str, Any]:
        return {**super()._options(written), "bias": Lp(P)}
