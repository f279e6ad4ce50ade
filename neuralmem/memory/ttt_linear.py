"""TTT-Linear: one matrix that follows the gradient, without momentum and without forgetting (2407.04620).

f(x) = x + LN(W x),  W <- W - theta grad |f(k) - v|^2, all gradients of a mini-batch at its first weights: Titans with a
memory of one layer and eta = alpha = 0. Mini-batch and theta as in ttt_mlp.py.
"""

from dataclasses import replace

from neuralmem.config import MemoryConfig
from neuralmem.memory.titans import Titans


class TTTLinear(Titans):
    """W <- W - theta grad |M(k) - v|^2, read M_W(q). memory.momentum, depth and alpha_bias do not apply."""

    uses = frozenset({"residual", "norm", "theta_max"})

    forgets = False

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, replace(config, momentum=False, depth=1))
