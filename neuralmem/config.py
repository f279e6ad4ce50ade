"""What a model is made of: three frozen dataclasses that are the Python API, the YAML schema and config.json at once.

Special here: one definition serves all three doors, every field says its meaning and unit, and a wrong value is refused
when the config is built, with the field's full name and what is allowed.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from neuralmem.errors import UserError, nearest

Activation = Literal["silu", "gelu", "gelu_tanh", "identity"]
OpBackend = Literal["auto", "reference", "chunked", "native"]
AttentionBackend = Literal["auto", "flash_attn", "torch_flash", "flex", "banded", "dense"]


@dataclass(frozen=True)
class AttentionConfig:
    """Attention of one layer.

    Args:
        heads: attention heads; must divide the model's width
        window: tokens a query sees, itself included; None is full causal attention
        persistent_tokens: learned keys and values that every query sees (Titans 3.3)
        segment: tokens per segment of `titans_mac`; other layers ignore it
        rotary_base: base of the rotary position embedding
        backend: rung of the attention ladder; "auto" takes the fastest that the machine has
    """

    heads: int = 4
    window: int | None = 64
    persistent_tokens: int = 4
    segment: int = 64
    rotary_base: float = 10000.0
    backend: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        _check("attention", self, positive=("heads", "window", "segment", "rotary_base"))
        if self.persistent_tokens < 0:
            raise UserError(f"attention.persistent_tokens is {self.persistent_tokens}; it must not be negative")


@dataclass(frozen=True)
class MemoryConfig:
    """Memory of one layer: what is updated while the model reads.

    Args:
        rule: a file of `neuralmem/memory/`, for example "titans" or "delta"
        heads: memory heads, each with weights of its own
        head_width: width of one head; None is the model's width divided by heads
        depth: weight matrices of the memory MLP (L_M in Titans); rule "delta" has one
        expansion: hidden width of the memory MLP, in head widths
        chunk_size: tokens that share one gradient anchor; part of the function that is computed, not a speed dial
        momentum: carry past surprise (eta); without it eta is zero
        norm: LayerNorm on the memory MLP's output; without it theta is bounded by 0.5 (1 - eta) / chunk_size
        residual: M(x) = x + f(x) rather than f(x)
        activation: between the weight matrices
        convolution: taps of the causal depthwise convolutions on queries, keys and values; 1 is none
        induction: start with keys that are the queries of the token before, so that what is written first is what
            followed what; needs convolution of at least 2
        output_gate: multiply the memory's output by SiLU of a linear map of the layer's input
        theta_max: theta = theta_max * sigmoid(.) * (1 - eta) / chunk_size
        theta_bias: initial bias of the inner learning rate's gate, before the sigmoid
        eta_bias: initial bias of the surprise decay's gate, before the sigmoid
        alpha_bias: initial bias of the forget gate, before the sigmoid
        checkpoint_every: chunks between kept boundary states in training; None keeps every chunk's intermediates
        backend: implementation of the update; "auto" takes the fastest that the machine has
    """

    rule: str = "titans"
    heads: int = 2
    head_width: int | None = None
    depth: int = 2
    expansion: float = 2.0
    chunk_size: int = 32
    momentum: bool = True
    norm: bool = True
    residual: bool = True
    activation: Activation = "silu"
    convolution: int = 4
    induction: bool = True
    output_gate: bool = True
    theta_max: float = 1.6
    theta_bias: float = 0.0
    eta_bias: float = -1.0
    alpha_bias: float = -6.0
    checkpoint_every: int | None = None
    backend: OpBackend = "auto"

    def __post_init__(self) -> None:
        counts = (
            "heads",
            "head_width",
            "depth",
            "expansion",
            "chunk_size",
            "convolution",
            "theta_max",
            "checkpoint_every",
        )
        _check("memory", self, positive=counts)


@dataclass(frozen=True)
class ModelConfig:
    """A causal language model.

    Args:
        vocab_size: token ids, 0 to vocab_size - 1
        width: width of the residual stream
        depth: layers
        pattern: files of `neuralmem/layers/`, repeated over the depth
        attention: attention of every layer that has it
        memory: memory of every layer that has it
        feed_forward: hidden width of the SwiGLU feed-forward, in model widths
        tie_embeddings: share the embedding matrix with the output head
        norm_eps: added to the mean square in every RMSNorm

    Example:
        >>> config = ModelConfig(vocab_size=257, width=64, depth=2, pattern=["titans_mac"])
        >>> ModelConfig.from_dict(config.to_dict()) == config
        True
    """

    vocab_size: int
    width: int = 128
    depth: int = 4
    pattern: list[str] = field(default_factory=lambda: ["titans_mag"])
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    feed_forward: float = 8 / 3
    tie_embeddings: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check("model", self, positive=("vocab_size", "width", "depth", "feed_forward", "norm_eps"))
        if not self.pattern:
            raise UserError("model.pattern is []; it must name at least one layer")
        object.__setattr__(self, "pattern", list(self.pattern))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to config.json and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build a config from plain values, refusing keys that do not exist.

        Raises:
            UserError: an unknown key or a value of the wrong type, with the nearest valid key.
        """
        nested = {"attention": AttentionConfig, "memory": MemoryConfig}
        options = dict(values)
        for name, part in nested.items():
            if isinstance(options.get(name), Mapping):
                options[name] = _build(part, options[name], f"model.{name}")
        return _build(cls, options, "model")

    @property
    def layer_names(self) -> list[str]:
        """The layer of every depth, the pattern repeated."""
        return [self.pattern[i % len(self.pattern)] for i in range(self.depth)]


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    for name in values:
        if name not in known:
            raise UserError(f"{where} has no field {name!r}{nearest(name, known)}")
    try:
        return cls(**values)
    except TypeError as error:
        missing = [n for n in known if n not in values and f"'{n}'" in str(error)]
        raise UserError(f"{where}.{missing[0]} is missing" if missing else f"{where}: {error}") from None


def _check(where: str, config: Any, positive: tuple[str, ...]) -> None:
    """Refuse a value of the wrong type, and one that must be positive and is not."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is(value, kind):
            allowed = get_args(kind) if get_origin(kind) is Literal else ()
            raise UserError(f"{where}.{name} is {value!r}; it must be {_describe(kind)}{nearest(value, allowed)}")
        if name in positive and value is not None and not value > 0:
            raise UserError(f"{where}.{name} is {value!r}; it must be positive")


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in get_args(kind))
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_is(x, get_args(kind)[0]) for x in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(part) for part in get_args(kind))
    if origin is list:
        return "a list of names"
    if is_dataclass(kind):
        return f"a {getattr(kind, '__name__', kind)}"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(kind, str(kind))
