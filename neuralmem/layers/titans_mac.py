"""Titans MAC, memory as context: attention over a segment sees what the memory recalls for it, and is then remembered.

h = M(q(S)) from the memory before the segment,  y = Attn([persistent | h | S]),  M <- M(y),  o = y (x) M(y)
Titans (2501.00663) Eq. 21-25. Special: position i sees h and S up to i only and the second read uses the weights after
token i, since the paper's plain causal mask and segment-end weights show a token its future (docs/paper_map.md).
What is written is norm(S + y), y with the residual that the paper has everywhere: with y alone nothing was learned.
"""

from dataclasses import dataclass

import torch

from neuralmem.config import ModelConfig
from neuralmem.layers._layer import Gate, Layer, build_memory
from neuralmem.memory._memory import MemoryState
from neuralmem.modules.attention import SegmentAttention
from neuralmem.modules.grid import Grid, lay_out
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.stream import Rows, expand_index
from neuralmem.ops import where_rows
from neuralmem.state import State, choose
from neuralmem.typing import MemoryMode, Tensor, Tensors


@dataclass(frozen=True)
class MACState(State):
    """Between two calls. Per sample it is the memory's state, its weights once more, 4 * (segment - 1) * N D keys and
    values, and one integer.

    Args:
        memory: with the writes of the unfinished segment
        anchor: the memory's weights as they were before that segment: what its first read uses
        segment: keys and values of the segment's tokens and of what was recalled for them, [B, segment - 1, N, D] each
        filled: Int [B], tokens in the unfinished segment
    """

    memory: MemoryState
    anchor: Tensors
    segment: Tensors
    filled: Tensor


class TitansMAC(Layer):
    """Recall, attention within a segment, remembering, gate; then feed-forward."""

    has_memory = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.size = config.attention.segment
        self.attention = SegmentAttention(config.width, config.attention)
        self.memory, self.gate = build_memory(config), Gate(config)
        self.written_norm = RMSNorm(config.width, config.norm_eps)

    @property
    def reach(self) -> int:
        return self.size - 1 + self.memory.reach

    def init_state(self, batch_size: int) -> MACState:
        memory = self.memory.init_state(batch_size)
        segment = self.attention.empty(batch_size, self.size - 1)
        return MACState(memory, memory.weights, segment, torch.zeros_like(memory.filled))

    def memory_only(self, state: MACState) -> MACState:
        """The unfinished segment ends here as a whole one does: what it would write enters the weights."""
        memory = choose(state.filled > 0, self.memory.close(state.memory), state.memory).without_context()
        segment = tuple(map(torch.zeros_like, state.segment))
        return MACState(memory, memory.weights, segment, torch.zeros_like(state.filled))

    def mix(self, x: Tensor, state: MACState | None, rows: Rows, memory: MemoryMode) -> tuple[Tensor, MACState]:
        fresh, state = state is None, state or self.init_state(len(x))
        if rows.plain and memory == "on" and (fresh or self._begins_segment(x, state)):
            return self._in_segments(self.norm(x), state)
        return self._on_grid(self.norm(x), state, rows, memory)

    def _begins_segment(self, x: Tensor, state: MACState) -> bool:
        """Whether every row's next token does, and a whole segment follows: for less, asking the device costs more.

        A segment that ended frozen left its first tokens' writes unfinished: then the memory does not begin a chunk.
        """
        return x.shape[1] >= self.size and not bool((state.filled + state.memory.filled).any())

    def _in_segments(self, x: Tensor, state: MACState) -> tuple[Tensor, MACState]:
        """A call that begins with a segment: whole ones, then the rest. Two calls of the memory for each, not three."""
        whole = x.shape[1] // self.size * self.size
        remembered, anchor, outputs = state.memory, state.anchor, []
        for part in x[:, :whole].split(self.size, dim=1) if whole else ():
            y, _ = self.attention(part, self.memory.recall(part, anchor))
            m, remembered = self.memory.segment(self.written_norm(part + y), remembered)
            anchor = remembered.weights
            outputs.append(self.gate(y, m))
        rest, segment = x[:, whole:], state.segment
        if rest.shape[1]:
            y, new = self.attention(rest, self.memory.recall(rest, anchor))
            m, remembered = self.memory(self.written_norm(rest + y), remembered, rows=Rows())
            outputs.append(self.gate(y, m))
            segment = tuple(
                torch.cat([a.to(b.dtype), b[:, a.shape[1] :]], dim=1) for a, b in zip(new, segment, strict=True)
            )
        filled = torch.full_like(state.filled, rest.shape[1])
        return torch.cat(outputs, dim=1) if outputs else x, MACState(remembered, anchor, segment, filled)

    def _on_grid(self, x: Tensor, state: MACState, rows: Rows, mode: MemoryMode) -> tuple[Tensor, MACState]:
        """A call that begins within a segment, or whose rows differ."""
        grid = lay_out(rows, (x.shape[0], x.shape[1]), state.filled, self.size)
        if grid.size == 0:
            return torch.zeros_like(x), state
        placed, real = grid.place(x), grid.real()
        remembered, anchor, outputs, seen = state.memory, state.anchor, [], []
        first = self.memory.init_state(len(x)) if rows.reset is not None else None
        for start in range(0, grid.size, self.size):
            here = slice(start, start + self.size)
            if first is not None:
                begins = grid.starts[:, start]
                remembered = choose(begins, first, remembered)
                anchor = where_rows(begins, first.weights, anchor)
            cached = (state.segment, state.filled) if start == 0 else None
            y, context = self.attention(placed[:, here], self._recall(placed[:, here], anchor, mode), cached)
            written = self.written_norm(placed[:, here] + y)
            m, remembered = self.memory(written, remembered, mask=real[:, here], memory=mode)
            outputs.append(self.gate(y, m))
            seen.append(context)
            done = grid.complete >= start + self.size
            if mode == "on" and bool(done.any()):
                remembered = choose(done, self.memory.close(remembered), remembered)
                anchor = where_rows(done, remembered.weights, anchor)
        segment = self._unfinished(grid, tuple(torch.cat(parts, dim=1) for parts in zip(*seen, strict=True)), state)
        y = grid.take(torch.cat(outputs, dim=1))
        return y, MACState(remembered, anchor, segment, grid.end - grid.complete)

    def _recall(self, x: Tensor, anchor: Tensors, mode: MemoryMode) -> Tensor:
        if mode == "off":
            return torch.zeros_like(x)
        return self.memory.recall(x, anchor if mode == "on" else self.memory.fast(len(x))[0])

    def _unfinished(self, grid: Grid, context: Tensors, state: MACState) -> Tensors:
        """Keys and values of each row's unfinished segment, zeros after its end."""
        slots = grid.tail(self.size - 1)
        taken = grid.complete[:, None] + torch.arange(self.size - 1, device=slots.device) < grid.end[:, None]
        return tuple(
            (c.gather(1, expand_index(slots, c)) * taken[..., None, None]).to(old.dtype)
            for c, old in zip(context, state.segment, strict=True)
        )
