"""Titans MAL, memory as a layer: the memory reads the tokens, a sliding window reads what it made of them.

y = M(x),  o = SW-Attn([persistent | y])            Titans (2501.00663) Eq. 29-31, each with its residual (4.5)
"""

from neuralmem.config import ModelConfig
from neuralmem.layers._layer import HybridState, Layer, build_attention, build_memory
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.stream import Rows
from neuralmem.typing import MemoryMode, Tensor


class TitansMAL(Layer):
    """Memory, then attention, then feed-forward."""

    has_memory = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.memory, self.attention = build_memory(config), build_attention(config)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)

    @property
    def reach(self) -> int | None:
        window = self.attention.reach
        return None if window is None else window + self.memory.reach

    def init_state(self, batch_size: int) -> HybridState:
        return HybridState(self.attention.init_state(batch_size), self.memory.init_state(batch_size))

    def mix(self, x: Tensor, state: HybridState | None, rows: Rows, memory: MemoryMode) -> tuple[Tensor, HybridState]:
        m, remembered = self.memory(self.norm(x), state and state.memory, memory=memory, rows=rows)
        y, attention = self.attention(self.attention_norm(x + m), state and state.attention, rows=rows)
        return m + y, HybridState(attention, remembered)
