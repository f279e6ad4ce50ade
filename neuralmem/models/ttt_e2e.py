"""TTT-E2E: a Transformer with a sliding window that goes on training on next-token loss while it reads.

Source: End-to-End Test-Time Training for Long Context (2512.23675) and its official code. With l_t(W) the loss of token
t at prime weights W, mini-batches of b tokens, and one W per sequence:

    inner:  W_i = W_{i-1} - theta clip((1/b) sum of grad l_t(W_{i-1}) over mini-batch i)
    outer:  (1/T) sum of l_t(W_{i-1}): the loss before the update, its gradient through all updates

Only the prime MLPs of the last quarter of the layers are W; everything else is fixed while reading and trained outside.
With `end_to_end.learns: feed_forward` W is the feed-forwards themselves, a Transformer's parameters and no others, so
that a trained one can learn too (`nm.with_continuum_memory`).
The clip is part of the model: with theta = 1 and without it reading diverges.

Special: `forward` returns the logits at W_{i-1}, so that the usual loss is the outer one. The last loss of a mini-batch
needs the first token of the next: the update happens when that token is read. Reading needs gradients, which it
takes under no_grad and in inference mode too. `end_to_end.periods` with several entries is a continuum memory
system (2512.24695 7.2) with next-token loss. The gain that the paper claims is in language-model loss (at 3B and 128K
2.275 against 2.286 for full attention); in its own needle tests the model finds no more than its window holds (S-NIAH-1
at 128K: .06, plain sliding window .07, full attention .99). Retrieval beyond the window is reported as found.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuralmem import probe
from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.layers._layer import hidden_width
from neuralmem.models._plan import Plan
from neuralmem.models._prime import FastWeights, Prime, PrimeFeedForward, Units
from neuralmem.models.causal_lm import CausalLM, ModelState
from neuralmem.modules.grid import lay_out
from neuralmem.modules.stream import Rows
from neuralmem.state import State, choose
from neuralmem.typing import MemoryMode, Tensor, Tensors

States = tuple[State, ...]


@dataclass(frozen=True)
class Unfinished(State):
    """The mini-batch whose update is still to come: what its gradient is taken of.

    Args:
        inputs: [B, b, width], the residual stream before the first layer that learns; zeros where nothing is
        tokens: Int [B, b]
        filled: Int [B], how many there are; all b until the token after them is read
        start: states of the layers that learn, before its first token
    """

    inputs: Tensor
    tokens: Tensor
    filled: Tensor
    start: States


@dataclass(frozen=True, kw_only=True)
class EndToEndState(ModelState):
    """What a model has read, prime weights and the unfinished mini-batch included."""

    fast: FastWeights
    unfinished: Unfinished


Read = tuple[Tensor, States, FastWeights, Unfinished]
"""The residual stream after the last layer, and the new state of the layers that learn."""


class EndToEnd(CausalLM):
    """Tokens to logits; learns what it reads by its own loss.

    Args:
        config: sizes; only `transformer` layers, with a window of at least end_to_end.mini_batch

    Raises:
        UserError: other layers, full attention, or too small a window.

    Example:
        >>> config = ModelConfig(vocab_size=257, width=32, depth=4, pattern=["transformer"], model="ttt_e2e")
        >>> model = EndToEnd(config)
        >>> with torch.no_grad():
        ...     logits, state = model(torch.randint(257, (2, 40)))
        >>> logits.shape, state.fast.updates, state.unfinished.filled
        (torch.Size([2, 40, 257]), tensor([2, 2]), tensor([8, 8]))
    """

    name = "ttt_e2e"
    patterns: ClassVar[Sequence[str]] = ("transformer",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        window, size = config.attention.window, config.end_to_end.mini_batch
        if window is None or window < size:
            raise UserError(f"attention.window is {window}; it must be at least end_to_end.mini_batch = {size}")
        hidden, levels = hidden_width(config), len(config.end_to_end.intervals)
        if config.end_to_end.learns == "feed_forward":
            if levels > hidden:
                raise UserError(
                    f"end_to_end.periods has {levels} levels; the feed-forward has {hidden} units to deal out"
                )
            return
        self.prime: Any = nn.ModuleList(
            nn.ModuleList(PrimeFeedForward(config.width, hidden, config.norm_eps) for _ in range(levels))
            for _ in range(self.prefix, config.depth)
        )

    @property
    def prefix(self) -> int:
        """How many layers come before those that learn, which are the last quarter."""
        return self.config.depth - max(1, self.config.depth // 4)

    def learner(self, index: int) -> Prime | Units:
        """What learns in layer prefix + index."""
        layer, end_to_end = self.layers[self.prefix + index], self.config.end_to_end
        if end_to_end.learns == "feed_forward":
            return Units(layer, len(end_to_end.intervals))
        return Prime(layer, self.prime[index])

    def first_weights(self) -> list[Tensors]:
        """What every sequence starts with, by level: two matrices per layer that learns, the first layer's first."""
        layers = [self.learner(j).initial() for j in range(self.config.depth - self.prefix)]
        return [tuple(w for own in level for w in own) for level in zip(*layers, strict=True)]

    def resting_weights(self) -> tuple[Tensors, ...]:
        """By level, what every sequence reads at where nothing learns, [1, D_out, D_in]; empty for levels that do."""
        levels = zip(self.first_weights(), self.config.end_to_end.intervals, strict=True)
        return tuple(() if interval is not None else tuple(w[None] for w in level) for level, interval in levels)

    def layer_config(self, index: int) -> ModelConfig:
        """Layers that learn are differentiated twice, where flash goes through `dense` too; they read at most b tokens
        at once, for which writing down all scores is no waste."""
        if index < self.prefix:
            return self.config
        return replace(self.config, attention=replace(self.config.attention, backend="dense"))

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        """Whether it learns while it reads: with theta = 0, or no level that learns, it is a Transformer."""
        return self.config.end_to_end.theta > 0 and any(self.config.end_to_end.intervals)

    def init_state(self, batch_size: int) -> EndToEndState:
        state, size = super().init_state(batch_size), self.config.end_to_end.mini_batch
        start = state.layers[self.prefix :]
        inputs = self.embedding.weight.new_zeros(batch_size, size, self.config.width)
        tokens = torch.zeros(batch_size, size, dtype=torch.long, device=self.device)
        unfinished = Unfinished(inputs, tokens, torch.zeros_like(state.position), start)
        fast = FastWeights.fresh(self.first_weights(), batch_size, self.config.end_to_end, self.state_dtype)
        return EndToEndState(state.position, state.layers, state.model, state.edition, fast=fast, unfinished=unfinished)

    def memory_only(self, state: ModelState) -> EndToEndState:
        """`CausalLM.memory_only`; the unfinished mini-batch ends without an update, since its context is gone."""
        kept = super().memory_only(state)
        assert isinstance(kept, EndToEndState)
        unfinished = kept.unfinished.map(torch.zeros_like)
        return replace(kept, unfinished=replace(unfinished, start=kept.layers[self.prefix :]))

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        state: EndToEndState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        memory: MemoryMode = "on",
        select: Tensor | None = None,
    ) -> tuple[Tensor, EndToEndState]:
        """Read tokens and predict the next one at each: `CausalLM.forward`.

        A call with memory="frozen" or "off" ends the unfinished mini-batch without an update: it has been interrupted.
        """
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            if any(p.is_inference() for p in self.parameters()):
                weights = {name: _ordinary(p) for name, p in self.named_parameters()}
                options = {"mask": mask, "reset": reset, "memory": memory, "select": select}
                return functional_call(self, weights, (tokens, state), options)
            tokens, state, mask, reset, select = map(_ordinary, (tokens, state, mask, reset, select))
            new: Any
            logits, new = super().forward(tokens, state, mask=mask, reset=reset, memory=memory, select=select)
        return logits, new

    def advance(
        self, tokens: Tensor, state: ModelState | None, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, EndToEndState]:
        """Tokens to the residual stream after the last layer."""
        x, layers = self.pass_layers(self.embedding(tokens), state, self.prefix, rows, memory)
        before = state if isinstance(state, EndToEndState) else self.init_state(len(tokens))
        if memory == "on" and self.has_memory:
            x, suffix, fast, unfinished = self._learn(x, tokens, before, rows)
        else:
            x, suffix, fast, unfinished = self._only_read(x, before, rows, memory)
        known = self.position(tokens, state, rows), (*layers, *suffix), weakref.ref(self), self.edition
        return x, EndToEndState(*known, fast=fast, unfinished=unfinished)

    def _pass_suffix(
        self, x: Tensor, states: States, weights: tuple[Tensors, ...], rows: Rows
    ) -> tuple[Tensor, States]:
        """Through the layers that learn. Without weights what learns adds nothing."""
        after = []
        for j, state in enumerate(states):
            mixed, state = self.layers[self.prefix + j].mix(x, state, rows, "on")
            x = self.learner(j)(x + mixed, [level[2 * j : 2 * j + 2] for level in weights])
            after.append(state)
        return x, tuple(after)

    def _learn(self, x: Tensor, tokens: Tensor, state: EndToEndState, rows: Rows) -> Read:
        """Mini-batch by mini-batch, each at the weights that the one before left; x is what the prefix gives."""
        old, size, resting = state.unfinished, self.config.end_to_end.mini_batch, self.resting_weights()
        grid = lay_out(rows, (x.shape[0], x.shape[1]), old.filled, size)
        inputs, ids = grid.place(x, old.inputs).to(old.inputs.dtype), grid.place(tokens.long(), old.tokens)
        if grid.size <= size and (rows.reset is None or not grid.size):  # a stream's usual call: no mini-batch ends
            y, states = self._pass_suffix(x, state.layers[self.prefix :], _all(state.fast.weights, resting), rows)
            unfinished = Unfinished(inputs, ids, grid.end, old.start) if grid.size else old
            return y, states, state.fast, unfinished
        plan, targets = Plan.of(grid), F.pad(ids, (0, 1))[:, 1:]
        fresh = None if rows.reset is None else self.init_state(len(x))
        fast, states, start, outputs = state.fast, old.start, old.start, [inputs[:, :0]]
        for i in range(grid.size // size):
            here = slice(i * size, (i + 1) * size)
            if fresh is not None:
                fast = choose(plan.begins[:, i], fresh.fast, fast)
                states = _choose_each(plan.begins[:, i], fresh.unfinished.start, states)
            if plan.ends[i]:
                start = _choose_each(plan.last[:, i], states, start)
            part = Rows(None if plan.full[i] else plan.taken[:, here])
            due = plan.due[:, i] if plan.learns[i] else None
            with probe.inside(self.layers[-1]):
                y, states, fast = self._read_mini_batch(
                    inputs[:, here], targets[:, here], part, states, fast, resting, due
                )
                self._observe(fast)
            outputs.append(y)
        inputs, ids = plan.tail(inputs), plan.tail(ids)
        return grid.take(torch.cat(outputs, dim=1)), states, fast, Unfinished(inputs, ids, plan.left, start)

    def _read_mini_batch(
        self,
        x: Tensor,
        targets: Tensor,
        rows: Rows,
        states: States,
        fast: FastWeights,
        resting: tuple[Tensors, ...],
        due: Tensor | None,
    ) -> tuple[Tensor, States, FastWeights]:
        """Read [B, b, width] at the weights so far, then update them for the sequences `due`, Bool [B], if any are."""
        if due is None:
            return *self._pass_suffix(x, states, _all(fast.weights, resting), rows), fast
        if torch.is_grad_enabled() and self.config.end_to_end.checkpoint:
            arguments = (self._train_mini_batch, x, targets, rows, states, fast, resting, due)
            return checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False)
        return self._train_mini_batch(x, targets, rows, states, fast, resting, due)

    def _train_mini_batch(
        self,
        x: Tensor,
        targets: Tensor,
        rows: Rows,
        states: States,
        fast: FastWeights,
        resting: tuple[Tensors, ...],
        due: Tensor,
    ) -> tuple[Tensor, States, FastWeights]:
        outer, config = torch.is_grad_enabled(), self.config.end_to_end
        with torch.enable_grad():
            weights = tuple(tuple(_variable(w, outer) for w in level) for level in fast.weights)
            y, states = self._pass_suffix(x, states, _all(weights, resting), rows)
            flat = [w for level in weights for w in level]
            # With a graph even where nobody needs it: without one torch rounds SiLU's derivative differently.
            gradients = torch.autograd.grad(self._loss(y, targets, due), flat, create_graph=True)
        if not outer:
            y, states = y.detach(), tuple(s.detach() for s in states)
            gradients = tuple(g.detach() for g in gradients)
        return y, states, fast.descend(iter(gradients), due, config)

    def _loss(self, y: Tensor, targets: Tensor, due: Tensor) -> Tensor:
        """The mean next-token loss of each sequence's mini-batch, summed over those that are due."""
        logits = self.head(self.norm(y))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        probe.observe("surprise", losses.detach()[due])
        return torch.where(due, losses.mean(1), 0).sum()

    def _observe(self, fast: FastWeights) -> None:
        if probe.active("state_norm"):
            norms = [w.detach().flatten(1).norm(dim=1) for level in fast.weights for w in level]
            probe.observe("state_norm", torch.stack(norms))

    def _only_read(self, x: Tensor, state: EndToEndState, rows: Rows, memory: MemoryMode) -> Read:
        """Read at the first weights, or without any, and write nothing."""
        fresh, size = self.init_state(len(x)), self.config.end_to_end.mini_batch
        weights = () if memory == "off" else _all(fresh.fast.weights, self.resting_weights())
        states, outputs = state.layers[self.prefix :], []
        for at in range(0, x.shape[1], size):
            here = slice(at, at + size)
            part = Rows(*(None if mark is None else mark[:, here] for mark in (rows.mask, rows.reset)))
            y, states = self._pass_suffix(x[:, here], states, weights, part)
            outputs.append(y)
        fast = state.fast if rows.reset is None else choose(rows.reset.any(1), fresh.fast, state.fast)
        read = torch.ones_like(state.position, dtype=torch.bool) if rows.mask is None else rows.mask.any(1)
        interrupted = replace(fresh.unfinished, start=states)
        return torch.cat(outputs, dim=1), states, fast, choose(read, interrupted, state.unfinished)


def _variable(w: Tensor, outer: bool) -> Tensor:
    """The weights as one mini-batch reads them: nothing that was read at them before counts in its gradient.

    Always a view: of leaves autocast would keep a copy per mini-batch until its block ends.
    """
    w = w if outer and w.requires_grad else w.detach().requires_grad_()
    return w.view_as(w)


def _all(weights: tuple[Tensors, ...], resting: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
    """By level, what is read at: of each sequence where it learns, of the model where it does not."""
    return tuple(own or still for own, still in zip(weights, resting, strict=True))


def _choose_each(rows: Tensor, yes: States, no: States) -> States:
    return tuple(choose(rows, a, b) for a, b in zip(yes, no, strict=True))


def _ordinary(x: Any) -> Any:
    """A tensor or a state that a gradient can be taken with, for one that was made in inference mode."""
    if isinstance(x, State):
        return x.map(_ordinary)
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x
