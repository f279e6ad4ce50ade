"""Memora: weights on a scaled simplex, kept near what they were by relative entropy (Miras 2504.13173).

W = c softmax((1 - alpha) log W - theta grad |M(k) - v|^2) over each row, so all weights are positive. c is the root of
the row's length: weights are then as large as those of the other memories. No momentum.
"""

from torch.nn import functional as F

from neuralmem.memory._retention import Retention
from neuralmem.typing import Tensor


class Memora(Retention):
    """The state keeps log(W / c). memory.momentum and depth do not apply."""

    def weights_of(self, accumulated: Tensor) -> Tensor:
        return accumulated.shape[-1] ** 0.5 * accumulated.softmax(-1)

    def accumulated(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, dim=-1)
