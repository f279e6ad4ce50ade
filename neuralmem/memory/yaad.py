"""Yaad: a memory that follows the squared error near what it knows and the absolute one far from it (Miras 2504.13173).

W <- (1 - alpha) W - theta g, where g is the gradient of |M(k) - v|^2 while |M(k) - v| <= delta, and keeps its length
beyond: an outlier moves the weights by a bounded amount. delta depends on the input. No momentum. Special: the paper
prints delta times the slope of |M(k) - v|_1 beyond, which steps further than the square does from a head width of 32
on; with it nothing was stored and gradients reached 1e20 in 1,024 tokens (docs/rules.md).
"""

from dataclasses import replace
from typing import Any

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory.titans import Titans
from neuralmem.ops import Huber
from neuralmem.typing import Tensor, Tensors


class Yaad(Titans):
    """delta = sqrt(head width) sigmoid(.), one per feature at most. memory.momentum and depth do not apply."""

    uses = frozenset({"expansion", "activation", "residual", "norm", "theta_max", "alpha_bias"})

    more_gates = (0.0,)

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, replace(config, momentum=False, depth=2))

    def gates(self, x: Tensor) -> Tensors:
        *gates, delta = super().gates(x)
        probe.observe("delta", delta, tokens=1)
        return *gates, self.head_width**0.5 * delta

    def _options(self, written: Tensors) -> dict[str, Any]:
        return {**super()._options(written), "bias": Huber(written[-1])}
