"""The Transformer baseline: full or sliding-window attention, no memory."""

from neuralmem.config import ModelConfig
from neuralmem.layers._layer import Layer, build_attention
from neuralmem.modules.attention import AttentionState
from neuralmem.modules.stream import Rows
from neuralmem.typing import MemoryMode, Tensor


class Transformer(Layer):
    """Attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.attention = build_attention(config)

    @property
    def reach(self) -> int | None:
        return self.attention.reach

    def init_state(self, batch_size: int) -> AttentionState:
        return self.attention.init_state(batch_size)

    def mix(
        self, x: Tensor, state: AttentionState | None, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, AttentionState]:
        return self.attention(self.norm(x), state, rows=rows)
