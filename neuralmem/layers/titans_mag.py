"""Titans MAG, memory as a gate: a sliding window and a memory read the same tokens, one gates the other.

y = SW-Attn([persistent | x]),  o = y (x) M(x)      Titans (2501.00663) Eq. 26-28
"""

from neuralmem.config import ModelConfig
from neuralmem.layers._layer import Gate, HybridState, Layer, build_attention, build_memory
from neuralmem.modules.stream import Rows
from neuralmem.typing import MemoryMode, Tensor


class TitansMAG(Layer):
    """Attention gated by memory, then feed-forward."""

    has_memory = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.attention, self.memory, self.gate = build_attention(config), build_memory(config), Gate(config)

    @property
    def reach(self) -> int | None:
        window = self.attention.reach
        return None if window is None else max(window, self.memory.reach)

    def init_state(self, batch_size: int) -> HybridState:
        return HybridState(self.attention.init_state(batch_size), self.memory.init_state(batch_size))

    def mix(self, x: Tensor, state: HybridState | None, rows: Rows, memory: MemoryMode) -> tuple[Tensor, HybridState]:
        x = self.norm(x)
        y, attention = self.attention(x, state and state.attention, rows=rows)
        m, remembered = self.memory(x, state and state.memory, memory=memory, rows=rows)
        return self.gate(y, m), HybridState(attention, remembered)
