"""Titans LMM: the long-term memory alone as the sequence mixer (2501.00663 4.4)."""

from neuralmem.config import ModelConfig
from neuralmem.layers._layer import Layer, build_memory
from neuralmem.memory._memory import MemoryState
from neuralmem.modules.stream import Rows
from neuralmem.typing import MemoryMode, Tensor


class TitansLMM(Layer):
    """Memory, then feed-forward. No attention, so nothing but the memory reaches further than a convolution."""

    has_memory = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.memory = build_memory(config)

    @property
    def reach(self) -> int:
        return self.memory.reach

    def init_state(self, batch_size: int) -> MemoryState:
        return self.memory.init_state(batch_size)

    def mix(self, x: Tensor, state: MemoryState | None, rows: Rows, memory: MemoryMode) -> tuple[Tensor, MemoryState]:
        return self.memory(self.norm(x), state, memory=memory, rows=rows)
