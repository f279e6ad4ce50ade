"""Continuum memory as a rule: levels of feed-forwards that learn values by keys, each at a period of its own.

Nested Learning (2512.24695) Eq. 70-71; the paper has it in the feed-forward position (layers/hope.py) and says neither
which loss its levels lower at test time nor how large a step is: here their own reconstruction error and a step that
cannot overshoot (ops/continuum/README.md). Special: read at the chunk's first weights, so a token does not see itself.
"""

from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._continuum import LevelledMemory, on_grid
from neuralmem.memory._rule import MemoryRule


class Continuum(LevelledMemory, MemoryRule):
    """W_l <- W_l - bounded sum of theta grad |M_l(k) - v|^2, every period of level l; M_l(x) = x + levels up to l.

    memory.chunk_size is the fastest period; theta_max, eta_bias, depth, activation, momentum and norm do not apply.
    """

    uses = frozenset({"expansion", "residual", "alpha_bias", "continuum"})

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__(width, on_grid(config))
        self.build_levels(max(1, round(config.expansion * self.head_width)), config.residual)
        if not self.levels.learning:
            raise UserError("memory.continuum has no level that learns; give one a period, and learn: true")
