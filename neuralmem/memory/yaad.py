"""Yaad: a memory that follows the squared error near what it knows and the absolute one far from it (Miras 2504.13173).

W <- (1 - alpha) W - theta g, where g is the gradient of |M(k) - v|^2 while |M(k) - v| <= delta, and beyond it delta
times that of |M(k) - v|_1: an outlier moves the weights by a bounded amount. delta depends on the input. No momentum.
"""

from dataclasses import replace
from typing import Any

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory.titans import Titans
from neuralmem.ops import Huber
from neuralmem.typing import Tensor, Tensors

SMOOTH = 1e-2  # squared width of the sign's transition: at 1e-6 the rounding of bfloat16 alone turned signs


class Yaad(Titans):
    """delta = sqrt(head width) sigmoid(.), one per feature at most. memory.momentum and depth do not apply."""

    more_gates = (0.0,)

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, replace(config, momentum=False, depth=2))

    def gates(self, x: Tensor) -> Tensors:
        *gates, delta = super().gates(x)
        probe.observe("delta", delta)
        return *gates, self.head_width**0.5 * delta

    def _options(self, written: Tensors) -> dict[str, Any]:
        return {**super()._options(written), "bias": Huber(written[-1], SMOOTH)}
