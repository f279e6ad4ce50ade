"""HOPE-Attention: sliding-window or full attention, then a continuum memory in the place of the feed-forward.

Nested Learning (2512.24695), section 8: HOPE with softmax attention instead of its memory. With one level that never
learns it is the Transformer layer; models/convert.py makes it from one.
"""

from neuralmem.config import ModelConfig
from neuralmem.layers._continuum import ContinuumLayer
from neuralmem.layers._layer import build_attention
from neuralmem.modules.attention import Attention


class HopeAttention(ContinuumLayer):
    """Attention, then continuum memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.attention = build_attention(config)

    @property
    def mixer(self) -> Attention:
        return self.attention
