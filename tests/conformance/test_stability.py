"""Law 12: at default settings, 64K tokens of anything leave everything finite; a million in `make soak`.

Four texts are read at once, one per row: random, one token repeated, two alternating, and adversarial, whose tokens
have embeddings a thousand times larger, opposite in turn, in blocks between random ones. Widths are tiny, so that all
of it takes seconds; settings are those that a user gets by naming only the layer and the rule. The stream of a layer is
also steady (steadiness.py): size and norm of the state, memory of the process, time per token.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.config import MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.modules.stream import Stream
from tests.conformance.steadiness import PIECE, Watch
from tests.conformance.subjects import LEARNERS, SUBJECTS, Subject, each
from tests.ops.memory_cases import NATIVE

MIB = 2**20
HUGE = 1e3
WIDTH = 16
NORMAL, LOUD = 48, 16  # tokens with usual and with huge embeddings


def default(subject: Subject, **memory: Any) -> Stream:
    """The subject at default settings but for `memory`, one layer, width 16, float32."""
    torch.manual_seed(2)
    memory = MemoryConfig(rule=subject.config.memory.rule, **memory)
    config = ModelConfig(NORMAL + LOUD, width=WIDTH, depth=1, pattern=subject.config.pattern[:1], memory=memory)
    return subject.construct(config)


def texts(tokens: int, seed: int) -> Tensor:
    """Int [4, tokens]."""
    random = torch.Generator().manual_seed(seed)
    index = torch.arange(tokens)
    anything = torch.randint(NORMAL, (tokens,), generator=random)
    loud = NORMAL + index % 2
    loudest = torch.where(index // 64 % 2 == 0, loud, NORMAL + torch.randint(LOUD, (tokens,), generator=random))
    adversarial = torch.where(index // 512 % 4 == 3, anything, loudest)
    return torch.stack([anything, torch.full_like(index, 7), 7 + index % 2, adversarial])


def embeddings() -> Tensor:
    table = torch.randn(NORMAL + LOUD, WIDTH, generator=torch.Generator().manual_seed(4))
    table[NORMAL:] *= HUGE
    table[NORMAL + 1] = -table[NORMAL]
    return table


def read_and_check(subject: Subject, module: Stream, pieces: int, *, normalise: bool = False) -> Watch:
    table, state, watch = embeddings(), None, Watch()
    if normalise:  # as the norm in front of it does in every layer
        table = torch.nn.functional.rms_norm(table, (WIDTH,))
    with torch.inference_mode():
        for i in range(pieces):
            y, state = module(table[texts(PIECE, i)], state)
            assert y.isfinite().all(), f"output is not finite in tokens {i * PIECE} to {(i + 1) * PIECE}"
            watch.see(state)
    for name, x in state.items():
        assert x.isfinite().all(), name
    return watch


RULES = [s for s in SUBJECTS if s.kind == "rule"]
LAYERS = [s for s in SUBJECTS if s.kind == "layer"]
WITH_MEMORY = [s for s in LAYERS if s in LEARNERS]
LONG = [s for s in LAYERS if s.config.memory.rule == MemoryConfig().rule or s not in LEARNERS]
AS_LAYERS = ("titans", "self_modifying")  # titans_lmm and hope read the same with them


@each([s for s in RULES if s.name not in AS_LAYERS])
def test_64k_tokens_leave_a_rule_finite(subject: Subject) -> None:
    read_and_check(subject, default(subject), 32, normalise=True)


@each(LONG)
def test_64k_tokens_leave_a_layer_finite_and_steady(subject: Subject) -> None:
    watch = read_and_check(subject, default(subject), 32)
    watch.assert_steady(drift=(0.1, 1, 1, 0.1), slower=2, grown=16 * MIB)


@each([s for s in WITH_MEMORY if s not in LONG])
def test_4k_tokens_leave_a_layer_with_another_rule_finite(subject: Subject) -> None:
    read_and_check(subject, default(subject), 2)


OVERFLOW = "values 300 times larger than a norm gives make the deep memory overflow"


@pytest.mark.parametrize(
    "backend", [pytest.param("chunked", marks=pytest.mark.xfail(reason=OVERFLOW, strict=True)), NATIVE]
)
def test_a_bare_rule_withstands_huge_vectors(backend: str) -> None:
    subject = next(s for s in RULES if s.name == "titans")
    read_and_check(subject, default(subject, backend=backend), 1)


def worst() -> Iterator[Any]:
    """The delta rule has neither momentum nor norm."""
    for subject in (s for s in WITH_MEMORY if s.name.startswith(("titans_lmm", "titans_mac"))):
        deep = subject.config.memory.rule == "titans"
        for eta, norm in product((-20.0, 0.0, 5.0, 20.0), (True, False)) if deep else [(0.0, True)]:
            yield pytest.param(subject, eta, norm, id=f"{subject.name} eta {eta:g}{'' if norm else ', no norm'}")


@pytest.mark.parametrize(("subject", "eta", "norm"), [*worst()])
def test_gates_at_their_worst_leave_everything_finite(subject: Subject, eta: float, norm: bool) -> None:
    """Learning rate at its largest, nothing forgotten, momentum from none to everything; 4K tokens."""
    gates = {"theta_bias": 20.0, "alpha_bias": -20.0, "eta_bias": eta, "norm": norm}
    read_and_check(subject, default(subject, theta_max=1.6 if norm else 0.5, **gates), 2)


@each(WITH_MEMORY)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
def test_gradients_of_a_hostile_text_are_finite(subject: Subject, norm: bool) -> None:
    if not norm and subject.name == "hope":
        with pytest.raises(UserError, match=r"^memory.norm is off; rule self_modifying needs it"):
            default(subject, norm=False)
        return
    layer = default(subject, norm=norm, theta_max=1.6 if norm else 0.5)
    y, _ = layer(embeddings()[texts(512, 0)])
    y.square().mean().backward()
    for name, x in layer.named_parameters():
        assert x.grad is not None, name
        assert x.grad.isfinite().all(), name


@each(RULES)
def test_gradients_do_not_grow_with_the_text(subject: Subject) -> None:
    """At default settings and head width 64, of a loss whose size does not depend on the length."""
    sizes = []
    for tokens in (128, 1024):
        torch.manual_seed(0)
        memory = MemoryConfig(rule=subject.name, heads=1, checkpoint_every=1)
        rule = subject.construct(replace(subject.config, width=64, memory=memory))
        y, _ = rule(torch.randn(1, tokens, 64))
        (y * torch.randn_like(y)).mean().backward()
        sizes.append(max(float(p.grad.abs().max()) for p in rule.parameters() if p.grad is not None))
    assert sizes[1] < 100 * sizes[0]


@pytest.mark.soak
@each(LAYERS)
def test_a_million_tokens_leave_everything_finite_and_steady(
    subject: Subject, record_property: Callable[[str, object], None]
) -> None:
    watch = read_and_check(subject, default(subject), 512)
    record_property("found", watch.found())
    watch.assert_steady(drift=(0.05, 0.5, 0.5, 0.05), slower=1.3, grown=4 * MIB)
    watch.assert_no_trend()
