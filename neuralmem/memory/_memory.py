"""What every memory shares: the state of a stream, reading without writing, ending a chunk early.

Special: a memory says what of a token it keeps until the chunk ends (`project`), how a chunk changes what is known
(`update`) and how it is read (`ask`, `evaluate`, `leave`). How a call of any length meets the grid of chunks is in
_chunks.py; what rules with queries, keys and values share is in _rule.py.
"""

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import nn

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._chunks import Chunks, Fast
from neuralmem.modules.short_conv import ShortConv
from neuralmem.modules.stream import Rows
from neuralmem.state import State, choose
from neuralmem.typing import MemoryMode, Tensor, Tensors


@dataclass(frozen=True)
class MemoryState(State):
    """What a memory knows, per sample. Its size depends on the config alone: numbers of weights and momentum, plus
    (chunk_size - 1) times what a token writes, (taps - 1) times what is convolved, and one integer.

    Args:
        weights: fast weights as of the last chunk start, [B, H, D_out, D_in] each, fp32 or wider
        momentum: past surprise, like `weights`, and whatever else a rule carries from chunk to chunk, 4 axes each with
            the batch first; empty for a rule without
        pending: what the unfinished chunk's tokens write, [B, chunk_size - 1, ...] each, zeros after `filled`
        filled: Int [B], tokens in the unfinished chunk
        convolution: tails of the convolutions
    """

    weights: Tensors
    momentum: Tensors
    pending: Tensors
    filled: Tensor
    convolution: Tensors

    def without_context(self) -> Self:
        return replace(self, convolution=tuple(map(torch.zeros_like, self.convolution)))


EVERY_RULE = frozenset(
    {"rule", "heads", "head_width", "chunk_size", "convolution", "induction", "output_gate", "theta_bias"}
    | {"checkpoint_every", "backend"}
)
"""Fields of MemoryConfig that every rule uses."""


class Memory(Chunks):
    """A memory as a layer's mixer: [B, T, width] -> [B, T, width].

    Args:
        width: of the residual stream
        config: the memory's settings
    """

    has_memory = True
    convolutions: list[ShortConv]
    uses: ClassVar[frozenset[str]] = frozenset()
    """Fields of MemoryConfig that this rule uses besides those of EVERY_RULE."""

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__()
        if config.head_width is None and width % config.heads:
            raise UserError(f"memory.heads is {config.heads}; it must divide width {width}, or set memory.head_width")
        self.config, self.width = config, width
        self.heads, self.head_width = config.heads, config.head_width or width // config.heads
        self.convolutions = nn.ModuleList()  # type: ignore[assignment]

    @classmethod
    def unused(cls, config: MemoryConfig) -> list[str]:
        """Fields that somebody set and this rule has no use for."""
        own, default = EVERY_RULE | cls.uses, MemoryConfig()
        changed = [f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)]
        return [name for name in changed if name not in own]

    @abstractmethod
    def initial(self) -> Fast:
        """First weights and first momentum, without the batch: [H, D_out, D_in] each."""

    @property
    @abstractmethod
    def written_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what one token writes: of what `project` returns, without batch and tokens."""

    @abstractmethod
    def project(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[Tensor, Tensors, Tensors]:
        """Input [B, T, width] to queries [B, T, H, D], what is written [B, T, ...] each, new tails."""

    @abstractmethod
    def ask(self, x: Tensor) -> Tensor:
        """The query of each token by itself, as at the start of a stream. [B, T, width] -> [B, T, H, D]."""

    @abstractmethod
    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        """Read at fixed weights. q: [B, T, H, D] -> [B, T, H, D]."""

    @abstractmethod
    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """What was read [B, T, H, D] to the residual stream."""

    @abstractmethod
    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """How badly a text is known, a scalar: the mean over its tokens of what the rule lowers by writing.

        Args:
            x: [B, T, width], read as if from the start of a stream
            state: what is known; not changed
        """

    @property
    def reach(self) -> int:
        """Tokens before the current one that the convolutions see."""
        return self.config.convolution - 1 if self.convolutions else 0

    def fast(self, batch_size: int) -> Fast:
        """The initial weights and momentum for every sample: [B, H, D_out, D_in] in the state's dtype."""
        # Copies: a step of the optimizer must not change a state that was read before it.
        weights, momentum = (
            tuple(x.to(self.state_dtype, copy=True).expand(batch_size, *x.shape) for x in part)
            for part in self.initial()
        )
        return weights, momentum

    def init_state(self, batch_size: int) -> MemoryState:
        weights, momentum = self.fast(batch_size)
        like = torch.empty(0, dtype=self.state_dtype, device=self.device)
        room = self.config.chunk_size - 1
        pending = tuple(like.new_zeros(batch_size, room, *shape) for shape in self.written_shapes)
        tails = tuple(convolution.init_state(batch_size) for convolution in self.convolutions)
        filled = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return MemoryState(weights, momentum, pending, filled, tails)

    def advance(
        self, x: Tensor, state: MemoryState | None, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, MemoryState]:
        fresh, state = state is None, state or self.init_state(len(x))
        q, written, tails = self.project(x, state.convolution, rows)
        if memory != "on" and rows.reset is not None:
            state = choose(rows.reset.any(1), self.init_state(len(x)), state)
        kept = (state.weights, state.momentum, state.pending, state.filled)
        if memory == "off":
            return torch.zeros_like(x), MemoryState(*kept, tails)
        if memory == "frozen":
            return self.leave(self.evaluate(q, self.fast(len(x))[0]), x), MemoryState(*kept, tails)
        with probe.inside(self):
            y, kept = self.read_and_write(q, written, kept, rows, fresh)
            self._observe(kept[0])
        return self.leave(y, x), MemoryState(*kept, tails)

    def retrieve(self, x: Tensor, state: MemoryState) -> Tensor:
        """Read without writing what everything read so far left in the memory, each token by itself.

        Of the query's convolution only the current token's tap counts, as at the start of a stream.

        Args:
            x: [B, T, width]
            state: not changed

        Returns:
            [B, T, width]
        """
        return self.recall(x, self.close(state).weights)

    def recall(self, x: Tensor, weights: Tensors) -> Tensor:
        """Read at given weights [B, H, D_out, D_in]: the query, the memory, the way out. [B, T, width] -> same."""
        return self.leave(self.evaluate(self.ask(x), weights), x)

    def close(self, state: MemoryState) -> MemoryState:
        """End the unfinished chunk: its writes enter the weights, and the next token starts a chunk."""
        index = torch.arange(state.pending[0].shape[1], device=state.filled.device)
        q = state.pending[0].new_zeros(*state.pending[0].shape[:2], self.heads, self.head_width)
        fast, write = (state.weights, state.momentum), index < state.filled[:, None]
        with probe.inside(self):
            _, (weights, momentum) = self.update(q, state.pending, fast, write, None)
        pending = tuple(map(torch.zeros_like, state.pending))
        return MemoryState(weights, momentum, pending, torch.zeros_like(state.filled), state.convolution)

    def segment(self, x: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Read a whole segment [B, T, width] from a chunk start and close it: the fast path of MAC."""
        q, written, tails = self.project(x, state.convolution, Rows())
        with probe.inside(self):
            y, fast = self.update(q, written, (state.weights, state.momentum), None, None)
            self._observe(fast[0])
        return self.leave(y, x), MemoryState(*fast, state.pending, state.filled, tails)

    def _observe(self, weights: Tensors) -> None:
        if probe.active("state_norm"):
            # Of each head; then the mean, since a memory's matrices may differ in their heads.
            norms = torch.stack([w.detach().flatten(2).norm(dim=-1).mean() for w in weights])
            probe.observe("state_norm", norms)
