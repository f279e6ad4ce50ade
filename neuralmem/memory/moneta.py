"""Moneta: the error in the third power, what was accumulated scaled by its fourth norm (Miras 2504.13173; p, q = 3, 4).

A <- (1 - alpha) A - theta grad |M(k) - v|_3^3,  W = A / |A|_4^2 with a norm per matrix and head. No momentum.
"""

from typing import Any

from neuralmem.memory._retention import Retention
from neuralmem.ops import Lp
from neuralmem.typing import Tensor, Tensors

P, Q = 3.0, 4.0
FLOOR = 0.1  # of |A|_4^2, for the map is not scale invariant: as A goes to 0, W would go to infinity
# W is about 1 / |A|, so a step that lengthens A shortens W, and under the norm the next gradient is longer still: with
# the rates of other rules |W| fell to 0.03 and nothing was stored (docs/rules.md).
RATE = 1 / 16


class Moneta(Retention):
    """theta is a sixteenth of what memory.theta_max says. memory.momentum and depth do not apply."""

    rate = RATE

    def weights_of(self, accumulated: Tensor) -> Tensor:
        fourth = accumulated.pow(Q).sum((-2, -1), keepdim=True)
        # Clamped before the root, whose slope at 0 is infinite.
        return accumulated / fourth.clamp(min=FLOOR ** (Q / (Q - 2))).pow((Q - 2) / Q)

    def _options(self, written: Tensors) -> dict[str, Any]:
        return {**super()._options(written), "bias": Lp(P)}
