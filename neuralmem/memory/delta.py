"""A linear memory with the exact delta rule and forgetting: the baseline that a deep memory has to beat.

DeltaNet (2406.06484) with a forget gate; it differs from Gated DeltaNet (2412.06464) in that the decay is not applied
to the correction. The chunk size changes its speed, not its result.
"""

import torch
from torch import nn

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory._chunks import Fast
from neuralmem.memory._rule import MemoryRule
from neuralmem.modules.gate_map import GateMap
from neuralmem.ops import delta_descent
from neuralmem.typing import Tensor, Tensors


class Delta(MemoryRule):
    """M <- (1 - alpha) M - theta (M k - v) k^T, read M q; theta and alpha are sigmoids, per token and head."""

    uses = frozenset({"alpha_bias"})

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        H, D = self.heads, self.head_width
        self.weight = nn.Parameter(torch.zeros(H, D, D))
        self.gate_map = GateMap(width, H, [config.theta_bias, config.alpha_bias])

    def initial(self) -> Fast:
        return (self.weight,), ()

    def gates(self, x: Tensor) -> Tensors:
        theta, alpha = self.gate_map(x)
        probe.observe("write", theta, tokens=1)
        for name, gate in (("theta", theta), ("alpha", alpha)):
            probe.observe_saturation(name, gate)
            probe.observe(name, gate, tokens=1)
        return theta, alpha

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        k, v, theta, alpha = written
        y, weight = delta_descent(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            theta,
            alpha,
            fast[0][0],
            chunk_size=self.config.chunk_size,
            write_mask=write_mask,
            initial=None if reset is None else self.fast(len(q))[0][0],
            reset=reset,
            checkpoint_every=self.config.checkpoint_every,
            backend=self.config.backend,
        )
        return y, ((weight,), ())

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        return torch.einsum("bhij,bthj->bthi", weights[0].to(q.dtype), q)
