"""Memora: weights on a scaled simplex, kept near what they were by relative entropy (Miras 2504.13173).

W = c softmax((1 - alpha) log W - theta grad |M(k) - v|^2) over each row, so where chunks meet all weights are positive;
what is read inside a chunk is additive (_retention.py) and need not be. c is the root of the row's length: weights are
then as large as those of the other memories. No momentum.
"""

import torch
from torch.nn import functional as F

from neuralmem.config import MemoryConfig
from neuralmem.memory._retention import Retention
from neuralmem.typing import Tensor


class Memora(Retention):
    """The state keeps log(W / c). memory.momentum and depth do not apply."""

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        # Logarithms of size one. Those of the other rules' start make every row uniform, and the memory a constant.
        with torch.no_grad():
            for a in self.weights:
                a.mul_(a.shape[-1] ** 0.5)

    def weights_of(self, accumulated: Tensor) -> Tensor:
        return accumulated.shape[-1] ** 0.5 * accumulated.softmax(-1)

    def accumulated(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, dim=-1)
