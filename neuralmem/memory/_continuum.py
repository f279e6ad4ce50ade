"""What a continuum memory is made of, wherever it stands: levels of feed-forwards, their gates, their update.

Nested Learning (2512.24695) Eq. 70-71. Two memories have it: the rule of continuum.py, whose keys and values are
projected, and here the one in a layer's feed-forward position, which adds to the residual stream.
"""

from dataclasses import replace

import torch
from torch import nn

from neuralmem import probe
from neuralmem.config import MemoryConfig
from neuralmem.memory._chunks import Fast
from neuralmem.memory._memory import Memory, MemoryState
from neuralmem.modules.gate_map import GateMap
from neuralmem.modules.init import RESIDUAL_SCALE, start_small
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.short_conv import ShortConv
from neuralmem.modules.stream import Rows
from neuralmem.ops.continuum import continuum_memory, evaluate_continuum
from neuralmem.ops.continuum.levels import Form
from neuralmem.typing import MemoryMode, Tensor, Tensors


def on_grid(config: MemoryConfig) -> MemoryConfig:
    """The config with its chunk as long as the fastest period: the grid on which levels update."""
    counts = [period for period in config.continuum.learning_periods(config.chunk_size) if period is not None]
    return replace(config, chunk_size=min(counts)) if counts else config


class Levels(nn.Module):
    """First weights and norms of the levels, fastest first, of modules/feed_forward.py's form.

    Args:
        config: the memory's, on its grid
        heads, width: of a level's input, [..., heads, width]
        hidden: of one level
        residual: M(x) = x + what the levels add, else what they add
        scale: of the last matrix, beside torch's own initialisation
        eps: of the norms
    """

    def __init__(
        self, config: MemoryConfig, heads: int, width: int, hidden: int, residual: bool, scale: float, eps: float
    ) -> None:
        super().__init__()
        self.config, self.residual = config.continuum, residual
        self.periods = tuple(config.continuum.learning_periods(config.chunk_size))
        timed = config.continuum.all_periods(config.chunk_size)
        self.timed = [i for i, period in enumerate(timed) if period is not None]
        count = 1 if self.config.variant == "nested" else len(self.periods)
        up, down = ((2 * hidden, width), (width, hidden))
        self.up = nn.ParameterList(torch.empty(heads, *up).uniform_(-1, 1) / width**0.5 for _ in range(count))
        self.down = nn.ParameterList(
            scale / hidden**0.5 * torch.empty(heads, *down).uniform_(-1, 1) for _ in range(count)
        )
        self.norms: list[RMSNorm] = nn.ModuleList(RMSNorm(width, eps) for _ in self.periods)  # type: ignore[assignment]
        share = torch.full((len(self.periods),), 1 / len(self.periods))
        self.mix = nn.Parameter(share) if self.config.variant == "independent" else None

    @property
    def learning(self) -> list[int]:
        """Indices of the levels that learn."""
        return [i for i, period in enumerate(self.periods) if period is not None]

    @property
    def resting(self) -> list[nn.Parameter]:
        """Matrices of levels that never learn: a feed-forward like any other."""
        if self.learning and self.config.variant == "nested":
            return []  # all levels start with the same
        still = [i for i, period in enumerate(self.periods[: len(self.up)]) if period is None]
        return [matrices[i] for i in still for matrices in (self.up, self.down)]

    def form(self) -> Form:
        """The levels as the op takes them."""
        wide = torch.promote_types(self.up[0].dtype, torch.float32)
        pairs = [(up[None], down[None]) for up, down in zip(self.up, self.down, strict=True)]
        nested = self.config.variant == "nested"
        return Form(
            self.periods,
            tuple(pairs * len(self.periods) if nested else pairs),
            tuple(norm.gain.to(wide) for norm in self.norms),
            None if self.mix is None else self.mix.to(wide),
            nested,
            self.residual,
            self.config.clip,
            self.norms[0].eps,
        )

    def initial(self, chunk_size: int) -> Fast:
        """First weights and empty sums of the levels that learn, [H, D_out, D_in] each."""
        form = self.form()
        weights = tuple(w[0] for i in self.learning for w in form.first[i])
        late = [form.first[i] for i in form.late(chunk_size)]
        sums = (x for up, down in late for x in (up[0], down[0], up[0, :, :1, :1].expand(-1, 1, 4)))
        return weights, tuple(map(torch.zeros_like, sums))


class LevelledMemory(Memory):
    """A memory of levels. Subclasses say what is asked, what is written and where the answer goes."""

    levels: Levels
    gate_map: GateMap

    def build_levels(self, hidden: int, residual: bool, scale: float = 1.0, eps: float = 1e-6) -> None:
        """The levels and their gates: theta of each that has a period, then alpha of each."""
        self.levels = Levels(self.config, self.heads, self.head_width, hidden, residual, scale, eps)
        count = len(self.levels.timed)
        if count:
            biases = [self.config.theta_bias] * count + [self.config.alpha_bias] * count
            self.gate_map = GateMap(self.width, self.heads, biases)

    def initial(self) -> Fast:
        return self.levels.initial(self.config.chunk_size)

    def gates(self, x: Tensor) -> Tensors:
        """theta and alpha, [B, T, H, learning levels] each, over the level's period."""
        periods = [float(self.levels.periods[i] or 1) for i in self.levels.learning]
        opened = torch.stack(self.gate_map(x), dim=-1)
        theta, alpha = opened.chunk(2, dim=-1)
        if self.levels.learning != self.levels.timed:
            chosen = [self.levels.timed.index(i) for i in self.levels.learning]
            theta, alpha = theta[..., chosen], alpha[..., chosen]
        probe.observe_saturation("theta", theta)
        probe.observe_saturation("alpha", alpha)
        probe.observe("write", theta, tokens=1)
        per_token = 1 / torch.tensor(periods, dtype=opened.dtype, device=opened.device)
        theta, alpha = self.config.continuum.theta_max * theta * per_token, alpha * per_token
        probe.observe("theta", theta, tokens=1)
        probe.observe("alpha", alpha, tokens=1)
        return theta, alpha

    def update(
        self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Fast]:
        k, v, theta, alpha = written
        y, weights, sums = continuum_memory(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            theta,
            alpha,
            *fast,
            self.levels.form(),
            chunk_size=self.config.chunk_size,
            write_mask=write_mask,
            initial=None if reset is None else self.fast(len(q)),
            reset=reset,
            checkpoint_every=self.config.checkpoint_every,
            backend=self.config.backend,
        )
        return y, (weights, sums)

    def read_unfinished(self, q: Tensor, written: Tensors, fast: Fast, write_mask: Tensor) -> Tensor:
        return self.evaluate(q, fast[0])  # what waits does not count before the chunk's end

    def evaluate(self, q: Tensor, weights: Tensors) -> Tensor:
        return evaluate_continuum(q, weights, self.levels.form())


class ContinuumFeedForward(LevelledMemory):
    """Levels in the place of a layer's feed-forward: [B, T, width], the residual stream, to what is added to it.

    One level that never learns is the plain feed-forward. A token's key is what the levels' input was a token before
    (a convolution that starts so, with memory.induction), its value a linear map of its own normed input: asked again
    at the same place, the levels add what came next. Queries are the stream itself, so that the first weights may be
    those of a trained feed-forward.

    Args:
        width: of the residual stream
        config: the memory's settings; heads do not apply
        hidden: of all levels together; of each, if they are nested
        eps: of the norms
    """

    def __init__(self, width: int, config: MemoryConfig, hidden: int, eps: float = 1e-6) -> None:
        super().__init__(width, on_grid(replace(config, heads=1, head_width=width)))
        shares = 1 if config.continuum.variant == "nested" else len(config.continuum.learning_periods(1))
        self.build_levels(max(1, round(hidden / shares)), residual=False, scale=RESIDUAL_SCALE, eps=eps)
        self.has_memory = bool(self.levels.learning)
        if not self.levels.timed:
            return
        self.value = nn.Linear(width, width, bias=False)
        if config.convolution > 1:
            self.convolutions.append(ShortConv(width, config.convolution))
        if config.induction:
            self._start_with_induction()

    @property
    def reach(self) -> int:
        return 0  # the convolution is on what is written only

    @property
    def written_shapes(self) -> list[tuple[int, ...]]:
        if not self.has_memory:
            return []
        gates = (1, len(self.levels.learning))
        return [(1, self.width), (1, self.width), gates, gates]

    def project(self, x: Tensor, tails: Tensors, rows: Rows) -> tuple[Tensor, Tensors, Tensors]:
        """The residual stream to queries, and to what is written: keys, values, gates."""
        k, normed = x, self.levels.norms[0](x)
        if self.convolutions:
            k, *tails = self.convolutions[0](x, *tails, rows)
        with probe.inside(self):
            gates = self.gates(normed)
        return self.ask(x), (k[:, :, None], self.value(normed)[:, :, None], *gates), tuple(tails)

    def ask(self, x: Tensor) -> Tensor:
        return x[:, :, None]

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        return y[:, :, 0].to(x.dtype)

    def recall_error(self, x: Tensor, state: MemoryState) -> Tensor:
        """The mean of |M(k) - v|^2."""
        _, (keys, values, *_), _ = self.project(x, self.init_state(len(x)).convolution, Rows())
        return (self.evaluate(keys, self.close(state).weights) - values).square().sum(-1).mean()

    def advance(
        self, x: Tensor, state: MemoryState | None, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, MemoryState]:
        if self.has_memory:
            return super().advance(x, state, rows, memory)
        return self.recall(x, ()), state or self.init_state(len(x))

    def close(self, state: MemoryState) -> MemoryState:
        return super().close(state) if self.has_memory else state

    @torch.no_grad()
    def _start_with_induction(self) -> None:
        nn.init.eye_(self.value.weight)
        start_small(self.value)
        for convolution in self.convolutions:
            nn.init.zeros_(convolution.weight)
            nn.init.ones_(convolution.weight[1])
