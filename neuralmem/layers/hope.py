"""HOPE: self-modifying Titans, then a continuum memory in the place of the feed-forward (2512.24695, section 8).

o = SelfModTitans(x),  y = MLP_k( ... MLP_1(o)), each with its norm and residual. The memory is the rule
`self_modifying`, whatever memory.rule says, which is for other layers of the same pattern.
"""

from neuralmem import registry
from neuralmem.config import ModelConfig
from neuralmem.layers._continuum import ContinuumLayer
from neuralmem.memory._memory import Memory


class Hope(ContinuumLayer):
    """Self-modifying Titans, then continuum memory. No attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        rule = registry.find("rule", "self_modifying", Memory, "memory.rule")
        self.memory: Memory = rule(config.width, config.memory)

    @property
    def mixer(self) -> Memory:
        return self.memory
