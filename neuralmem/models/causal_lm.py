"""A causal language model of any pattern of layers, whose state is a value.

Special: `forward` is the only way in, for training, streaming and generation alike; a text cut into any calls gives the
same logits. With memory="frozen" or "off" the same weights show what they can do without writing, or without memory.
"""

import hashlib
import json
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from neuralmem import registry
from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.layers._layer import Layer
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.stream import Rows, Stream
from neuralmem.state import State, check_layout
from neuralmem.typing import MemoryMode, Tensor


@dataclass(frozen=True)
class ModelState(State):
    """What a model has read.

    Args:
        position: Int [B], tokens of the current document so far
        layers: one state per layer
        model: a weak reference to the model whose state this is
        edition: the model's `edition` when it read, None if that is not known
    """

    position: Tensor
    layers: tuple[State, ...]
    model: Any = field(default=None, repr=False, compare=False, metadata={"identity": True})
    edition: int | None = field(default=None, repr=False, compare=False, metadata={"identity": True})

    def identity(self) -> dict[str, str] | None:
        """Config and a hash of the weights of the model, if it still exists.

        Raises:
            UserError: the model was trained on since it read, so that its weights are not those that read.
        """
        model = self.model and self.model()
        if model is not None and self.edition not in (None, model.edition):
            raise UserError(
                "state belongs to earlier weights: the model was changed since it read; save before training"
            )
        return model and model.identity()


class CausalLM(Stream):
    """Tokens to logits.

    Args:
        config: sizes and layers

    Example:
        >>> config = ModelConfig(vocab_size=257, width=32, depth=1, pattern=["titans_lmm"])
        >>> model = CausalLM(config)
        >>> logits, state = model(torch.randint(257, (2, 40)))
        >>> logits.shape, state.position
        (torch.Size([2, 40, 257]), tensor([40, 40]))
    """

    name = "causal_lm"
    """What the config calls this kind of model."""
    patterns: ClassVar[Sequence[str] | None] = None
    """The layers that it takes; None is all of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.model != self.name:
            raise UserError(
                f"model.model is {config.model!r}; {type(self).__name__} is of {self.name!r}: use build_model"
            )
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        layers = (self._layer_class(name)(self.layer_config(i)) for i, name in enumerate(config.layer_names))
        self.layers: list[Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self._identity: tuple[int | None, str] | None = None
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
            self.head.weight = self.embedding.weight

    def _layer_class(self, name: str) -> type[Layer]:
        if self.patterns is not None and name not in self.patterns:
            allowed = ", ".join(self.patterns)
            raise UserError(f"model.pattern is {name!r}; for model {self.name!r} it must be one of {allowed}")
        return registry.find("layer", name, Layer, "model.pattern")

    def layer_config(self, index: int) -> ModelConfig:
        """What the layer at a depth, 0 the first, is built from."""
        return self.config

    @property
    def has_memory(self) -> bool:  # type: ignore[override]
        """Whether any layer learns while it reads."""
        return any(layer.has_memory for layer in self.layers)

    @property
    def reach(self) -> int:
        """How many tokens back attention and convolutions alone can see; sys.maxsize with full attention."""
        reaches = [layer.reach for layer in self.layers]
        return sum(reach or 0 for reach in reaches) if None not in reaches else sys.maxsize

    def init_state(self, batch_size: int) -> ModelState:
        """The state before the first token.

        Args:
            batch_size: samples, each with a memory of its own
        """
        position = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        layers = tuple(layer.init_state(batch_size) for layer in self.layers)
        return ModelState(position, layers, weakref.ref(self), self.edition)

    def memory_only(self, state: ModelState) -> ModelState:
        """The state without all that attention and convolutions have seen, as at the start of another session.

        What layers learned while they read is all that is carried. Of a model without memory a fresh state is left,
        but for the position.

        Args:
            state: not changed
        """
        layers = tuple(layer.memory_only(own) for layer, own in zip(self.layers, state.layers, strict=True))
        return replace(state, layers=layers)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        memory: MemoryMode = "on",
        select: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Read tokens and predict the next one at each.

        Args:
            tokens: Int [B, T], at least one token
            state: what was read before; None is nothing
            mask: Bool [B, T], True for real tokens; padding anywhere changes nothing and gets logits of zero
            reset: Bool [B, T], True on a document's first token: it is read as by a fresh state
            memory: "on"; "frozen": nothing is written, reads see the initial weights; "off": the memory gives zeros
            select: Bool [B, T], predict at these n tokens only; a training step rarely needs all logits at once

        Returns:
            Logits [B, T, V], or [n, V] with `select`, and the state after the last token.

        Raises:
            UserError: token ids, shapes or a state that do not fit.
        """
        hidden, state = super().forward(tokens, state, mask=mask, reset=reset, memory=memory)
        return self.head(self.norm(hidden if select is None else hidden[select])), state

    def advance(
        self, tokens: Tensor, state: ModelState | None, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, ModelState]:
        """Tokens to the residual stream after the last layer."""
        x, layers = self.pass_layers(self.embedding(tokens), state, len(self.layers), rows, memory)
        return x, ModelState(self.position(tokens, state, rows), layers, weakref.ref(self), self.edition)

    def pass_layers(
        self, x: Tensor, state: ModelState | None, count: int, rows: Rows, memory: MemoryMode
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Through the first `count` layers, [B, T, width] -> the same, and their new states."""
        states = []
        for i in range(count):
            x, new = self.layers[i](x, state and state.layers[i], memory=memory, rows=rows)
            states.append(new)
        return x, tuple(states)

    def position(self, tokens: Tensor, state: ModelState | None, rows: Rows) -> Tensor:
        """Int [B], how many tokens each row's document has had after this call."""
        fresh = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        return rows.carried(fresh if state is None else state.position, tokens.shape[1], sys.maxsize)

    @property
    def edition(self) -> int | None:
        """A number that changes whenever a weight does; None inside compiled code, which cannot ask."""
        if torch.compiler.is_compiling():
            return None
        return sum(p._version for p in self.parameters() if not p.is_inference())  # those cannot be trained

    def identity(self) -> dict[str, str]:
        """What a saved state must match: the config, and a hash of the weights (kept until a weight changes)."""
        edition = self.edition
        if self._identity is None or self._identity[0] != edition:
            self._identity = edition, self._hash()
        return {"config": json.dumps(self.config.to_dict(), sort_keys=True), "weights": self._identity[1]}

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, x in sorted(self.state_dict().items()):
            digest.update(f"{name} {list(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _check(self, x: Tensor, state: Any, mask: Tensor | None, reset: Tensor | None, memory: str) -> None:
        if x.ndim != 2 or x.dtype not in (torch.int64, torch.int32):
            raise UserError(f"tokens is {x.dtype}{list(x.shape)}; it must be integers [B, T], int64 or int32")
        if x.shape[1] == 0:
            raise UserError(f"tokens has shape {list(x.shape)}; T must be at least 1, there is nothing to read")
        if not torch.compiler.is_compiling() and x.numel() and x.device.type == "cpu":
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise UserError(
                    f"tokens contain {wrong}; ids go from 0 to vocab_size - 1 = {self.config.vocab_size - 1}"
                )
        super()._check(x, state, mask, reset, memory)
        if state is not None and not torch.compiler.is_compiling():
            self._check_state(state)

    def _check_state(self, state: Any) -> None:
        """Refuse a state that another kind of model made; one of a copy of this model is welcome."""
        if not isinstance(state, ModelState):
            raise UserError(f"state is a {type(state).__name__}; it must be one that a CausalLM returned")
        model = state.model and state.model()
        if model is self:
            return
        check_layout("state is of another model", dict(state.items()), self.init_state(len(state.position)))
        if model is not None and model.identity() != self.identity():
            raise UserError("state is of another model: its layers have these sizes, but other weights")


def build_model(config: ModelConfig) -> CausalLM:
    """The kind of model that `config.model` names.

    Raises:
        UserError: there is none of that name, or the config does not fit it.

    Example:
        >>> type(build_model(ModelConfig(vocab_size=5, width=8, depth=1, pattern=["transformer"]))).__name__
        'CausalLM'
    """
    return registry.find("model", config.model, CausalLM, "model.model")(config)
