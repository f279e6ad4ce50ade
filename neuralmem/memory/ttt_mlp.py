"""TTT-MLP: an MLP of two layers that follows the gradient, without momentum and without forgetting (2407.04620).

f(x) = x + LN(W_2 gelu(W_1 x)),  W <- W - theta grad |f(k) - v|^2, all gradients of a mini-batch at its first weights:
Titans with eta = alpha = 0. The mini-batch is memory.chunk_size; the paper's is 16. theta is theta_max sigmoid(.) over
the mini-batch's size, where the authors' code has a learned running mean over it (docs/paper_map.md).
"""

from dataclasses import replace

from neuralmem.config import MemoryConfig
from neuralmem.memory.titans import Titans


class TTTMLP(Titans):
    """W <- W - theta grad |M(k) - v|^2, read M_W(q). memory.momentum, depth, activation and alpha_bias do not apply."""

    uses = frozenset({"expansion", "residual", "norm", "theta_max"})

    forgets = False

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, replace(config, momentum=False, depth=2, activation="gelu_tanh"))
