"""What every layer shares: a mixer of tokens with its residual, then a feed-forward with its own."""

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import nn

from neuralmem import registry
from neuralmem.config import ModelConfig
from neuralmem.memory._memory import Memory, MemoryState
from neuralmem.modules.attention import Attention, AttentionState
from neuralmem.modules.feed_forward import FeedForward
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.stream import Rows, Stream
from neuralmem.state import State
from neuralmem.typing import MemoryMode, Tensor


@dataclass(frozen=True)
class HybridState(State):
    """The state of a layer with a sliding window and a memory."""

    attention: AttentionState
    memory: MemoryState


class Layer(Stream):
    """[B, T, width] -> [B, T, width]: x + mixer(norm(x)), then x + feed_forward(norm(x)).

    Args:
        config: the model's
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.build_feed_forward(config)

    def build_feed_forward(self, config: ModelConfig) -> None:
        """The feed-forward and its norm; a layer with something else in this place overrides it, and `advance`."""
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward = FeedForward(config.width, hidden_width(config))

    @abstractmethod
    def mix(self, x: Tensor, state: Any, rows: Rows, memory: MemoryMode) -> tuple[Tensor, Any]:
        """What the mixer adds to the residual stream; x is that stream, not yet normalised."""

    @property
    @abstractmethod
    def reach(self) -> int | None:
        """Tokens before the current one that attention and convolutions see; None for all of them."""

    def memory_only(self, state: Any) -> Any:
        """The state without all that attention and convolutions have seen: what is left was learned."""
        return state.without_context()

    def advance(self, x: Tensor, state: Any, rows: Rows, memory: MemoryMode) -> tuple[Tensor, Any]:
        mixed, state = self.mix(x, state, rows, memory)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), state


def hidden_width(config: ModelConfig) -> int:
    """Of the feed-forward."""
    return max(1, round(config.width * config.feed_forward))


def build_memory(config: ModelConfig) -> Memory:
    """The memory that the config names. A field that was set and means nothing to it is worth a warning."""
    rule: type[Memory] = registry.find("rule", config.memory.rule, Memory, "memory.rule")
    if unused := rule.unused(config.memory):
        warnings.warn(f"rule {config.memory.rule} does not use memory.{', memory.'.join(unused)}", stacklevel=2)
    return rule(config.width, config.memory)


def build_attention(config: ModelConfig) -> Attention:
    """The attention that the config describes."""
    return Attention(config.width, config.attention)


class Gate(nn.Module):
    """y gated by what the memory says: RMSNorm(y) * sigmoid(RMSNorm(m)) (Titans Eq. 25, 28).

    The paper normalises both with learned vectors and puts a non-linearity on one; which is our choice (paper_map).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attended = RMSNorm(config.width, config.norm_eps)
        self.remembered = RMSNorm(config.width, config.norm_eps)

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        return self.attended(y) * self.remembered(m).sigmoid()
