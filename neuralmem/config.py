"""What a model is made of: frozen dataclasses that are the Python API, the YAML schema and config.json at once.

Special here: one definition serves all three doors, every field says its meaning and unit, and a wrong value is refused
when the config is built, with the field's full name and what is allowed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from neuralmem.errors import UserError
from neuralmem.fields import build, check

Activation = Literal["silu", "gelu", "gelu_tanh", "identity"]
OpBackend = Literal["auto", "reference", "chunked", "native"]
AttentionBackend = Literal["auto", "flash_attn", "torch_flash", "flex", "banded", "cpu_flash", "dense"]


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
        check("attention", self, positive=("heads", "window", "segment", "rotary_base"))
        if self.persistent_tokens < 0:
            raise UserError(f"attention.persistent_tokens is {self.persistent_tokens}; it must not be negative")


@dataclass(frozen=True)
class ContinuumConfig:
    """A continuum memory system: levels that learn at periods of their own (rule `continuum`, layers `hope*`).

    Args:
        periods: tokens between two updates of a level, fastest first, each a multiple of the first, and last those that
            never update: null. None for all is memory.chunk_size and four times that
        learn: per level, whether it learns while reading; None is all. One that does not reads as one of period null
            does, and keeps its gates, so that the config can switch levels of a trained model off and on
        variant: "sequential": h <- h + level(h), each level with first weights of its own; "nested": the same with one
            shape, where a level starts anew from the next slower one whenever that has updated; "independent": levels
            side by side, summed with learned weights
        loss: what a level lowers while it reads. "reconstruction": its own error of values by keys; "next_token" is the
            model ttt_e2e
        theta_max: theta = theta_max * sigmoid(.) / period per token; 0 is a memory that never changes. Instead of
            memory.theta_max; theta_bias and alpha_bias apply
        clip: an error counts at most this much, root mean square over features
    """

    periods: list[int | None] | None = None
    learn: list[bool] | None = None
    variant: Literal["sequential", "nested", "independent"] = "sequential"
    loss: Literal["reconstruction", "next_token"] = "reconstruction"
    theta_max: float = 4.0
    clip: float = 3.0

    def __post_init__(self) -> None:
        where = "memory.continuum"
        check(where, self, positive=("clip",))
        if self.loss == "next_token":
            raise UserError(
                f"{where}.loss is 'next_token'; for that loss set model.model to ttt_e2e, and end_to_end.periods"
            )
        if self.theta_max < 0:
            raise UserError(f"{where}.theta_max is {self.theta_max!r}; it must not be negative")
        if self.periods is not None:
            object.__setattr__(self, "periods", list(self.periods))
            self._check_periods(f"{where}.periods is {self.periods}", self.periods)
        levels = len(self.periods) if self.periods is not None else 2
        if self.learn is not None and len(self.learn) != levels:
            raise UserError(f"{where}.learn is {self.learn}; it must have {levels} values, one per level")
        learning = [period for period in self.learning_periods(1) if period is not None]
        if any(period % learning[0] for period in learning):
            raise UserError(
                f"{where}.periods is {self.periods}, learn {self.learn}; the periods of levels that learn must be "
                f"multiples of the first of them, {learning[0]}"
            )

    @staticmethod
    def _check_periods(given: str, periods: list[int | None]) -> None:
        counts = [period for period in periods if period is not None]
        if not periods or periods[: len(counts)] != counts or any(a >= b for a, b in pairwise(counts)):
            raise UserError(f"{given}; it must be positive numbers of tokens, fastest first, then null")
        if any(period <= 0 or period % counts[0] for period in counts):
            raise UserError(f"{given}; every period must be a positive multiple of the first")

    def learning_periods(self, chunk_size: int) -> list[int | None]:
        """The period of every level, None where it does not learn.

        Args:
            chunk_size: the memory's, from which the periods come if none are given
        """
        periods = self.all_periods(chunk_size)
        learn = self.learn if self.learn is not None else [True] * len(periods)
        return [period if learns else None for period, learns in zip(periods, learn, strict=True)]

    def all_periods(self, chunk_size: int) -> list[int | None]:
        """The same whether a level learns or not: None only where it has no period."""
        return self.periods if self.periods is not None else [chunk_size, 4 * chunk_size]


@dataclass(frozen=True)
class TNTConfig:
    """Chunks of the rule `tnt`, in tokens; other rules ignore it.

    Args:
        local_chunks: one local memory per entry; each divides the largest, which is the memory's chunk instead of
            memory.chunk_size. None is half of memory.chunk_size and all of it
        global_chunk: between two updates of the global memory, a multiple of the largest local chunk; None is twice it
        shard: between two starts of the local memories, a multiple of the largest local chunk; None is four times that
    """

    local_chunks: list[int] | None = None
    global_chunk: int | None = None
    shard: int | None = None

    def __post_init__(self) -> None:
        check("memory.tnt", self, positive=("global_chunk", "shard"))
        if self.local_chunks is not None:
            object.__setattr__(self, "local_chunks", list(self.local_chunks))
            chunks = self.local_chunks
            if not chunks or min(chunks) < 1 or any(max(chunks) % chunk for chunk in chunks):
                raise UserError(
                    f"memory.tnt.local_chunks is {chunks}; it must be positive numbers that divide the largest"
                )


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
        omega_window: tokens that a step of rule "omega" or "atlas" is taken for, at most chunk_size; None is 4 at most
        momentum: carry past surprise (eta); without it eta is zero
        muon: orthogonalise what a chunk of rule "lact" writes (Newton-Schulz); theta then only weighs its tokens. In
            rule "atlas", every step; theta then alone says how long it is
        polynomial: powers of keys and queries that the memory of rule "atlas" sees, from 1 to this
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
        continuum: levels of the rule `continuum` and of the layers `hope` and `hope_attention`; others ignore it
        tnt: chunks of the rule `tnt`; others ignore it
        backend: implementation of the update; "auto" takes the fastest that the machine has
    """

    rule: str = "titans"
    heads: int = 2
    head_width: int | None = None
    depth: int = 2
    expansion: float = 2.0
    chunk_size: int = 32
    omega_window: int | None = None
    momentum: bool = True
    muon: bool = True
    polynomial: int = 2
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
    continuum: ContinuumConfig = field(default_factory=ContinuumConfig)
    tnt: TNTConfig = field(default_factory=TNTConfig)
    backend: OpBackend = "auto"

    def __post_init__(self) -> None:
        counts = (
            "heads",
            "head_width",
            "depth",
            "expansion",
            "chunk_size",
            "omega_window",
            "polynomial",
            "convolution",
            "theta_max",
            "checkpoint_every",
        )
        check("memory", self, positive=counts)


@dataclass(frozen=True)
class EndToEndConfig:
    """What the model `ttt_e2e` learns while it reads, from the loss of the next token; other models ignore it.

    Args:
        mini_batch: tokens between two updates, at most attention.window
        learns: in each of the last quarter of the layers: "prime", MLPs of their own before the feed-forward, or
            "feed_forward", the feed-forward itself, its hidden units dealt out to the levels
        periods: one level per entry, updated every so many tokens: the mini-batch first, then multiples of it, slower
            and slower, and null for one that never updates. None is one level with the mini-batch as its period
        learn: per level, whether it learns while reading; None is all
        theta: inner learning rate; 0 is the frozen model
        clip: a level's gradient, of one sequence and all layers together, has at most this norm
        checkpoint: recompute every mini-batch in backward instead of keeping what it computed
    """

    mini_batch: int = 16
    learns: Literal["prime", "feed_forward"] = "prime"
    periods: list[int | None] | None = None
    learn: list[bool] | None = None
    theta: float = 1.0
    clip: float = 1.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        where = "end_to_end"
        check(where, self, positive=("mini_batch", "clip"))
        if self.theta < 0:
            raise UserError(f"{where}.theta is {self.theta!r}; it must not be negative")
        levels = 1 if self.periods is None else len(self.periods)
        if self.learn is not None and len(self.learn) != levels:
            raise UserError(f"{where}.learn is {self.learn}; it must have {levels} values, one per level")
        if self.periods is None:
            return
        object.__setattr__(self, "periods", list(self.periods))
        counts = [period for period in self.periods if period is not None]
        rising = all(a < b for a, b in pairwise(counts)) and self.periods[: len(counts)] == counts
        if counts[:1] != [self.mini_batch] or not rising or any(period % self.mini_batch for period in counts):
            raise UserError(
                f"{where}.periods is {self.periods}; it must begin with mini_batch = {self.mini_batch}, then have "
                "multiples of it, slower and slower, then null"
            )

    @property
    def intervals(self) -> list[int | None]:
        """Mini-batches between two updates of each level; None where it never updates."""
        periods = self.periods if self.periods is not None else [self.mini_batch]
        learn = self.learn if self.learn is not None else [True] * len(periods)
        return [period // self.mini_batch if period and on else None for period, on in zip(periods, learn, strict=True)]


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
        model: a file of `neuralmem/models/`: "causal_lm", or "ttt_e2e"
        end_to_end: what `ttt_e2e` learns while it reads

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
    model: str = "causal_lm"
    end_to_end: EndToEndConfig = field(default_factory=EndToEndConfig)

    def __post_init__(self) -> None:
        check("model", self, positive=("vocab_size", "width", "depth", "feed_forward", "norm_eps"))
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
        return build(cls, values, "model")

    @property
    def chunk_size(self) -> int:
        """Tokens from one update of the memory to the next: of `memory`, or the mini-batch of a `ttt_e2e`."""
        return self.end_to_end.mini_batch if self.model == "ttt_e2e" else self.memory.chunk_size

    @property
    def layer_names(self) -> list[str]:
        """The layer of every depth, the pattern repeated."""
        return [self.pattern[i % len(self.pattern)] for i in range(self.depth)]
