"""Atlas: a memory over powers of its keys whose every step is orthogonalised (ATLAS 2505.23735).

S <- eta S + sum_j Gamma_{t,t-j} grad |M(phi(k_{t-j})) - v_{t-j}|^2 over c tokens,  W <- (1 - alpha) W - theta NS(S).
Special: Newton-Schulz of every token's S makes this the slowest rule by far: keep chunk_size small, and train with
memory.checkpoint_every 1.
"""

import math
from typing import Any

import torch
from torch import nn

from neuralmem.config import MemoryConfig
from neuralmem.memory.omega import Omega
from neuralmem.ops import decode_muon, evaluate_polynomial, muon_memory
from neuralmem.typing import Tensor, Tensors


class Atlas(Omega):
    """phi(x) = (a_1 x, ..., a_p x^p), elementwise, p = memory.polynomial, a_i learned per head from 1/i! on.

    theta = theta_max sigmoid(.) (1 - eta) / chunk_size, as in Titans. With muon every singular value of a step is about
    theta, so that a chunk moves each by theta_max at most.
    """

    uses = Omega.uses | {"polynomial", "muon"}
    op = staticmethod(muon_memory)
    decode_op = staticmethod(decode_muon)

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, config)
        H, hidden, D = self.weights[0].shape
        more = torch.randn(H, hidden, (config.polynomial - 1) * D) / D**0.5
        self.weights[0] = nn.Parameter(torch.cat([self.weights[0].detach(), more], dim=-1))
        start = torch.tensor([1 / math.factorial(i) for i in range(1, config.polynomial + 1)])
        self.coefficients = nn.Parameter(start.repeat(H, 1))

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        return evaluate_polynomial(q, weights, self.coefficients, **self._form)

    def _options(self, written: Tensors) -> dict[str, Any]:
        return {**super()._options(written), "coefficients": self.coefficients, "muon": self.config.muon}
