"""What the layers of HOPE share: a mixer, then a continuum memory in the place of the feed-forward (2512.24695)."""

from dataclasses import dataclass
from typing import Any

from neuralmem.config import ModelConfig
from neuralmem.layers._layer import Layer, hidden_width
from neuralmem.memory._continuum import ContinuumFeedForward
from neuralmem.memory._memory import Memory, MemoryState
from neuralmem.modules.attention import Attention
from neuralmem.modules.stream import Rows
from neuralmem.state import State
from neuralmem.typing import MemoryMode, Tensor


@dataclass(frozen=True)
class HopeState(State):
    """The state of a layer whose feed-forward learns too."""

    mixer: State
    feed_forward: MemoryState


class ContinuumLayer(Layer):
    """[B, T, width] -> [B, T, width]: x + mixer(norm(x)), then x + levels(x), whose norms are their own."""

    feed_forward: ContinuumFeedForward  # type: ignore[assignment]

    def build_feed_forward(self, config: ModelConfig) -> None:
        self.feed_forward = ContinuumFeedForward(config.width, config.memory, hidden_width(config), config.norm_eps)

    @property
    def mixer(self) -> Attention | Memory:
        """What mixes tokens."""
        raise NotImplementedError

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        """Whether the mixer or a level learns while it reads."""
        return self.mixer.has_memory or self.feed_forward.has_memory

    @property
    def reach(self) -> int | None:
        return self.mixer.reach

    def init_state(self, batch_size: int) -> HopeState:
        return HopeState(self.mixer.init_state(batch_size), self.feed_forward.init_state(batch_size))

    def mix(self, x: Tensor, state: Any, rows: Rows, memory: MemoryMode) -> tuple[Tensor, Any]:
        return self.mixer(self.norm(x), state, memory=memory, rows=rows)

    def advance(self, x: Tensor, state: HopeState | None, rows: Rows, memory: MemoryMode) -> tuple[Tensor, HopeState]:
        mixed, mixer = self.mix(x, state and state.mixer, rows, memory)
        x = x + mixed
        y, levels = self.feed_forward(x, state and state.feed_forward, memory=memory, rows=rows)
        return x + y, HopeState(mixer, levels)
