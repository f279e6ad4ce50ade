"""Everything that has to keep the laws of docs/architecture.md: every rule, every layer with every rule, every model.

Special: nothing is listed by hand. A file in memory/, layers/ or models/ is a subject from the moment it exists
(test_discovery.py), at settings that put chunk, segment and window boundaries inside a text of twenty tokens. Rules,
layers with the two THOROUGH rules, and models are under all tests; a layer with any other rule, of which there are as
many as the product, is a PAIR, under the one test of test_pairs.py.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem import registry
from neuralmem.config import AttentionConfig, ContinuumConfig, EndToEndConfig, MemoryConfig, ModelConfig
from neuralmem.layers._layer import Layer
from neuralmem.memory._memory import Memory
from neuralmem.models.causal_lm import CausalLM
from neuralmem.modules.stream import Stream
from neuralmem.state import State

TINY = ModelConfig(
    vocab_size=11,
    width=8,
    depth=2,
    pattern=["transformer"],
    attention=AttentionConfig(heads=2, window=5, persistent_tokens=2, segment=6),
    # Chunks do not divide segments, the memory writes and forgets visibly.
    memory=MemoryConfig(heads=2, expansion=1.5, chunk_size=4, theta_bias=2.0, alpha_bias=-3.0),
    end_to_end=EndToEndConfig(mini_batch=4),
)
T = 19  # tokens of a text: three segments and four chunks begun


@dataclass(frozen=True)
class Subject:
    """Something that reads a stream.

    Args:
        name: what the test is called
        kind: "rule", "layer" or "model"
        construct: config -> module
        config: at which it is tested
    """

    name: str
    kind: str
    construct: Callable[[ModelConfig], Stream]
    config: ModelConfig = TINY

    def build(self, dtype: torch.dtype = torch.float64, **memory: Any) -> Stream:
        """The module, every parameter moved away from where it is initialised (zeros hide mistakes)."""
        torch.manual_seed(1)
        module = self.construct(replace(self.config, memory=replace(self.config.memory, **memory))).to(dtype)
        with torch.no_grad():
            for x in module.parameters():
                x.add_(0.1 * torch.randn_like(x))
        return module

    def draw(self, batch: int, tokens: int = T, dtype: torch.dtype = torch.float64) -> Tensor:
        """A random text: token ids for a model, else vectors."""
        if self.kind == "model":
            return torch.randint(self.config.vocab_size, (batch, tokens))
        return torch.randn(batch, tokens, self.config.width, dtype=dtype)

    def change(self, x: Tensor) -> Tensor:
        """Other tokens, every one different from x's."""
        return (x + 1) % self.config.vocab_size if self.kind == "model" else x + torch.randn_like(x)


def _rule(config: ModelConfig) -> Stream:
    return registry.find("rule", config.memory.rule, Memory, "memory.rule")(config.width, config.memory)


def _layer(config: ModelConfig) -> Stream:
    return registry.find("layer", config.pattern[0], Layer, "model.pattern")(config)


def _has_rule(name: str) -> bool:
    """Whether the layer takes the rule that the config names."""
    config = replace(TINY, pattern=[name])
    first, other = ({type(part) for part in _layer(with_rule(config, rule)).modules()} for rule in THOROUGH)
    return first != other


def with_rule(config: ModelConfig, rule: str) -> ModelConfig:
    return replace(config, memory=replace(config.memory, rule=rule))


def model_classes() -> list[type[CausalLM]]:
    """Every network that a file of neuralmem/models/ defines."""
    folder = Path(registry.ROOT) / "models"
    modules = [
        importlib.import_module(f"neuralmem.models.{file.stem}")
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_")
    ]
    return [
        x
        for module in modules
        for _, x in inspect.getmembers(module, inspect.isclass)
        if issubclass(x, CausalLM) and x.__module__ == module.__name__
    ]


THOROUGH = ("delta", "titans")  # a matrix without momentum, and an MLP with it


def _with_rules(layer: str, rules: Sequence[str]) -> Iterator[Subject]:
    for rule in rules:
        yield Subject(f"{layer}+{rule}", "layer", _layer, with_rule(replace(TINY, pattern=[layer]), rule))


def discover() -> Iterator[Subject]:
    """All subjects at tiny settings."""
    rules, layers = registry.names("rule"), registry.names("layer")
    for rule in rules:
        yield Subject(rule, "rule", _rule, with_rule(TINY, rule))
    for layer in layers:
        if _has_rule(layer):
            yield from _with_rules(layer, THOROUGH)
        else:
            yield Subject(layer, "layer", _layer, replace(TINY, pattern=[layer]))
    for cls in model_classes():
        taken = [layer for layer in layers if cls.patterns is None or layer in cls.patterns]
        for layer in taken:
            config = with_rule(replace(TINY, pattern=[layer], model=cls.name), "titans")
            yield Subject(f"{cls.__name__}({layer})", "model", cls, config)
        mixed = with_rule(replace(TINY, pattern=taken, depth=len(taken), model=cls.name), "delta")
        if len(taken) > 1:
            yield Subject(f"{cls.__name__}(all layers)", "model", cls, mixed)


def pairs() -> Iterator[Subject]:
    """Every layer that takes any rule, with every rule that is not THOROUGH."""
    rules = [rule for rule in registry.names("rule") if rule not in THOROUGH]
    for layer in registry.names("layer"):
        if _has_rule(layer):
            yield from _with_rules(layer, rules)


SUBJECTS = list(discover())
PAIRS = list(pairs())
MODELS = [s for s in SUBJECTS if s.kind == "model"]


def learns(subject: Subject) -> bool:
    return bool(subject.build().has_memory)


LEARNERS = [s for s in SUBJECTS if learns(s)]


def each(subjects: Sequence[Subject] = SUBJECTS) -> pytest.MarkDecorator:
    """Run a test for each subject."""
    return pytest.mark.parametrize("subject", subjects, ids=[s.name for s in subjects])


def variants() -> list[Subject]:
    """A model of all layers at settings that are off the beaten track, one at a time."""
    layers = registry.names("layer")
    base = replace(TINY, pattern=layers, depth=len(layers))

    def change(name: str, *, attention: dict | None = None, memory: dict | None = None, **model: Any) -> Subject:
        config = replace(
            base,
            attention=replace(base.attention, **attention or {}),
            memory=replace(base.memory, **memory or {}),
            **model,
        )
        return Subject(name, "model", model_classes()[0], config)

    return [
        change("full attention", attention={"window": None, "persistent_tokens": 0}),
        # Small steps: theta_max / chunk_size is large for one token, and large steps amplify rounding past 1e-10.
        change(
            "units of one token",
            attention={"window": 1, "segment": 1},
            memory={"chunk_size": 1, "convolution": 1, "theta_max": 0.1},
        ),
        change("chunk longer than segment", attention={"segment": 3}, memory={"chunk_size": 8}),
        change("chunk equal to segment", attention={"segment": 4}),
        change("no momentum, no gate", memory={"momentum": False, "output_gate": False}),
        change(
            "no norm, no residual",
            memory={"norm": False, "residual": False, "theta_max": 0.5},
            pattern=[layer for layer in layers if layer != "hope"],  # whose memory needs the norm, and says so
        ),
        change("linear memory", memory={"depth": 1, "activation": "identity"}),
        # Smaller steps here too: these two amplify rounding near 1e-10 by themselves.
        change(
            "three layers, wide heads",
            memory={"depth": 3, "activation": "gelu", "head_width": 6, "heads": 3, "theta_max": 0.8},
        ),
        change(
            "long convolution, tied",
            memory={"convolution": 7, "induction": False, "theta_max": 0.8},
            tie_embeddings=True,
        ),
        *(
            change(
                f"{variant} levels",
                memory={"continuum": ContinuumConfig(periods=[2, 4, None], variant=variant)},
                pattern=["hope", "hope_attention"],  # the others have no levels
                depth=2,
            )
            for variant in ("nested", "independent")
        ),
        change("reference backend", memory={"backend": "reference"}),
        change("chunked backend", memory={"backend": "chunked"}),  # where native is built, auto is that
        change("recomputed in backward", memory={"checkpoint_every": 2}),
        *_end_to_end(),
    ]


def _end_to_end() -> Iterator[Subject]:
    cls = next(cls for cls in model_classes() if cls.name == "ttt_e2e")
    config = replace(TINY, model="ttt_e2e", depth=8)
    for name, options in (
        ("mini-batches of one token", {"mini_batch": 1}),
        ("mini-batches as long as the window", {"mini_batch": 5}),
        ("levels", {"mini_batch": 2, "periods": [2, 6, None]}),
        ("the feed-forward learns", {"mini_batch": 3, "learns": "feed_forward", "periods": [3, 6, 12]}),
        ("mini-batches recomputed in backward", {"mini_batch": 3, "checkpoint": True}),
    ):
        yield Subject(name, "model", cls, replace(config, end_to_end=EndToEndConfig(**options)))


def assert_close(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def assert_same_state(a: State, b: State, atol: float = 1e-10) -> None:
    """Equal states. The cache of full attention may have empty places in front, which are zero."""
    for (name, x), (other, y) in zip(a.items(), b.items(), strict=True):
        assert name == other
        if x.shape != y.shape:
            size = min(x.shape[1], y.shape[1])
            for z in (x, y):
                assert not z[:, : z.shape[1] - size].any(), f"{name} holds something where it should be empty"
            x, y = (z[:, z.shape[1] - size :] for z in (x, y))
        torch.testing.assert_close(x, y, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def assert_identical(a: State, b: State) -> None:
    for (name, x), (_, y) in zip(a.items(), b.items(), strict=True):
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name


def read(module: Stream, x: Tensor, cuts: Sequence[int], state: Any = None, **options: Any) -> tuple[Tensor, State]:
    """Read x in calls of the given lengths. A model refuses calls without a token, its parts do not."""
    outputs = []
    for part in x.split([n for n in cuts if n or not isinstance(module, CausalLM)], dim=1):
        y, state = module(part, state, **options)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state
