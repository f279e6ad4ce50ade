"""Who races in family.py: every memory rule in the same layer, the layers and models that bring their own, baselines.

All have a layer of attention over a short window, then their own; the same width, about the same number of parameters
(the feed-forward makes up the difference) and about the same size of state: head width and expansion of a memory, how
many of HOPE's levels learn, and how large a part of TTT-E2E's feed-forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from family_tasks import VOCABULARY

from neuralmem import registry
from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.memory._memory import Memory
from neuralmem.models.causal_lm import build_model

PARAMETERS = 250_000
STATE = 48 * 1024  # bytes per sequence
ROW = 128  # tokens of a training row
WINDOW = 16
BASE = ModelConfig(
    vocab_size=VOCABULARY,
    width=64,
    depth=2,
    pattern=["transformer", "titans_mag"],
    tie_embeddings=True,
    attention=AttentionConfig(heads=2, window=WINDOW, persistent_tokens=0, rotary_base=100.0),
    memory=MemoryConfig(heads=1, head_width=32, chunk_size=16, expansion=2.0, output_gate=False),
)
OWN_LAYERS = ("hope", "hope_attention")


@dataclass(frozen=True)
class Member:
    """One contender.

    Args:
        name: as in the table
        config: matched in size
        kind: "memory", or "baseline"
    """

    name: str
    config: ModelConfig
    kind: str = "memory"


def members() -> Iterator[Member]:
    """Everybody, baselines first; a new rule is one as soon as its file exists."""
    window = replace(BASE, pattern=["transformer"])
    yield Member("window only", fit(window, knobs=False), "baseline")
    full = replace(window, attention=replace(BASE.attention, window=None))
    yield Member("full attention", fit(full, knobs=False), "baseline")
    for rule in registry.names("rule"):
        yield Member(rule, fit(replace(BASE, memory=replace(BASE.memory, rule=rule))))
    for layer in OWN_LAYERS:
        if layer in registry.names("layer"):
            yield Member(layer, fit(replace(BASE, pattern=["transformer", layer])))
    if "ttt_e2e" in registry.names("model"):
        end_to_end = replace(BASE.end_to_end, mini_batch=WINDOW, learns="feed_forward")
        yield Member("ttt_e2e", fit(replace(window, model="ttt_e2e", end_to_end=end_to_end)))


def fit(config: ModelConfig, *, knobs: bool = True, state: int = STATE) -> ModelConfig:
    """The config with a state near so many bytes and parameters near PARAMETERS."""
    if not knobs:
        return _filled(config)
    if config.model == "ttt_e2e":
        return _widest(map(_filled, _parts(config)), state)
    if not set(config.pattern) & set(OWN_LAYERS):
        return _filled(_widest(_sizes(config), state))
    # Their feed-forward is state too, so one depends on the other.
    return _widest(map(_filled, _levels(config)), state)


def _widest(configs: Iterator[ModelConfig], state: int) -> ModelConfig:
    """The widest heads with a state within a tenth of so many bytes, which store the most; else the nearest state."""
    away = [(abs(state_bytes(config) / state - 1), config) for config in configs]
    near = [pair for pair in away if pair[0] <= 0.1]
    widest = max((config.memory.head_width or 0 for _, config in near), default=0)
    wide = [pair for pair in near if pair[1].memory.head_width == widest]
    return min(wide or away, key=lambda pair: pair[0])[1]


def _filled(config: ModelConfig) -> ModelConfig:
    """The config with the feed-forward that makes up the parameters."""
    low, high = 0.02, 32.0  # bisection: parameters grow with the feed-forward
    for _ in range(14):
        middle = (low + high) / 2
        if parameters(replace(config, feed_forward=middle)) < PARAMETERS:
            low = middle
        else:
            high = middle
    return replace(config, feed_forward=round(high, 3))


def _sizes(config: ModelConfig) -> Iterator[ModelConfig]:
    """The config at every size of its memory that is tried."""
    rule: type[Memory] = registry.find("rule", config.memory.rule, Memory, "memory.rule")
    expansions = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0) if "expansion" in rule.uses else (BASE.memory.expansion,)
    for head_width in (16, 24, 32, 48, 64):
        for expansion in expansions:
            yield replace(config, memory=replace(config.memory, head_width=head_width, expansion=expansion))


def _levels(config: ModelConfig) -> Iterator[ModelConfig]:
    """The config with one level that learns among more and more that do not."""
    for resting in (7, 15, 31):
        continuum = replace(config.memory.continuum, periods=[config.memory.chunk_size, *[None] * resting])
        for head_width, expansion in product((16, 24, 32), (0.5, 1.0)):
            memory = replace(config.memory, head_width=head_width, expansion=expansion, continuum=continuum)
            yield replace(config, memory=memory)


def _parts(config: ModelConfig) -> Iterator[ModelConfig]:
    """The config with one part of its feed-forward that learns among more and more that do not."""
    for resting in (0, 1, 3, 7, 15, 31):
        periods = [config.end_to_end.mini_batch, *[None] * resting]
        yield replace(config, end_to_end=replace(config.end_to_end, periods=periods))


def state_bytes(config: ModelConfig) -> int:
    """Of one sequence of ROW tokens; only full attention's depends on how many."""
    if config.attention.window is not None:
        with torch.device("meta"):
            return build_model(config).init_state(1).nbytes
    with torch.no_grad():
        return build_model(config)(torch.zeros(1, ROW, dtype=torch.long))[1].nbytes


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())
