"""Counted operations against torch's counter, which watches the products that really run."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from neuralmem import registry
from neuralmem.config import AttentionConfig, ContinuumConfig, EndToEndConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.causal_lm import build_model
from neuralmem.training import flops, flops_memory
from neuralmem.training.flops import count_flops

T = 40  # tokens: two chunks and a half, a segment and two thirds
BASE = ModelConfig(
    vocab_size=40,
    width=16,
    depth=1,
    pattern=["titans_lmm"],
    attention=AttentionConfig(heads=2, window=24, persistent_tokens=2, segment=24, backend="dense"),
    memory=MemoryConfig(heads=2, expansion=3, chunk_size=16, backend="chunked"),
)
LAYERS, RULES = registry.names("layer"), registry.names("rule")


def with_rule(rule: str, layer: str = "titans_lmm", **memory: object) -> ModelConfig:
    return replace(BASE, pattern=[layer], memory=replace(BASE.memory, rule=rule, **memory))


def measured(config: ModelConfig, *, backward: bool, tokens: int = T, rows: int = 1) -> float:
    """What torch counts per row."""
    torch.manual_seed(0)
    model, text = build_model(config), torch.randint(config.vocab_size, (rows, tokens))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward or config.model == "ttt_e2e"):
        logits, _ = model(text)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() / rows


@pytest.fixture
def every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count as the rung "dense" computes: scores that are masked away as well, T * T of them (a segment's S * S)."""
    monkeypatch.setattr(flops, "visible_keys", lambda tokens, window: tokens * tokens)


TRAINED = {
    **{f"rule {rule}": with_rule(rule) for rule in RULES},
    **{f"layer {layer}": replace(BASE, pattern=[layer], depth=2) for layer in LAYERS},
}
CASES = TRAINED | {
    **{f"mac {rule}": with_rule(rule, "titans_mac") for rule in RULES},
    "all layers": replace(BASE, pattern=LAYERS, depth=len(LAYERS)),
    "full attention": replace(BASE, pattern=["transformer"], attention=replace(BASE.attention, window=None)),
    "no momentum": with_rule("titans", momentum=False),
    "three layers, wide heads": with_rule("titans", depth=3, head_width=12),
    "no gate, no convolution": with_rule("titans", output_gate=False, convolution=1, induction=False),
    "omega, no momentum": with_rule("omega", momentum=False, omega_window=3),
    "atlas without muon": with_rule("atlas", muon=False, polynomial=3),
    "lact without muon": with_rule("lact", muon=False, momentum=False),
    "tnt, three local memories": with_rule("tnt", depth=1),
    "levels, one asleep": with_rule(
        "continuum", continuum=ContinuumConfig(periods=[8, 16, 32], learn=[True, True, False])
    ),
    "nested levels": with_rule("continuum", continuum=ContinuumConfig(variant="nested")),
    "tied": replace(BASE, tie_embeddings=True, feed_forward=1.5),
}


@pytest.mark.usefixtures("every_score")
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_forward_pass_is_counted_exactly(config: ModelConfig) -> None:
    """To the last operation but for triangular solves, which torch's counter does not see."""
    count = count_flops(config, T)
    assert count.forward() - count.solves == measured(config, backward=False)


@pytest.mark.usefixtures("every_score")
@pytest.mark.parametrize("config", TRAINED.values(), ids=TRAINED)
def test_a_training_step_is_three_forward_passes(config: ModelConfig) -> None:
    """To 10%: what the first layer reads and the last chunk writes needs no gradient, in a long row a small part; the
    derivative of a product with itself (Newton-Schulz, self-made keys) is more than two products."""
    count = count_flops(config, 4 * T)
    assert count.training() - 3 * count.solves == pytest.approx(measured(config, backward=True, tokens=4 * T), rel=0.1)


@pytest.mark.parametrize("periods", [None, [16, 32, None]], ids=["one level", "levels"])
@pytest.mark.parametrize("learns", ["prime", "feed_forward"])
def test_the_gradient_taken_while_reading_counts(
    learns: str, periods: list | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 5%, counting the scores that are computed: twice the window's, for almost all tokens and in all layers."""
    monkeypatch.setattr(flops, "visible_keys", lambda tokens, window: 2 * window * tokens)
    inner = EndToEndConfig(mini_batch=16, learns=learns, periods=periods)
    attention = replace(BASE.attention, window=16, backend="banded")
    config = replace(BASE, model="ttt_e2e", pattern=["transformer"], depth=8, attention=attention, end_to_end=inner)
    count = count_flops(config, 160)
    assert count.inner > 0.1 * count.forward()
    for total, backward in ((count.forward(), False), (count.training(), True)):
        assert total == pytest.approx(measured(config, backward=backward, tokens=160), rel=0.05)


def test_attention_counts_what_a_query_sees() -> None:
    """Not what a rung computes beside it: the counter's number for "dense" is larger."""
    short = replace(BASE, pattern=["transformer"], attention=replace(BASE.attention, window=4, persistent_tokens=0))
    count = count_flops(short, T)
    assert count.attention == 4 * 16 * (4 * T - 6)
    assert measured(short, backward=False) - count.forward() == 4 * 16 * (T * T - (4 * T - 6))


def test_only_predicted_tokens_pay_for_the_head() -> None:
    count = count_flops(BASE, T)
    assert count.forward() - count.forward(targets=0) == 2 * T * 16 * 40
    assert count.training(targets=3) == 3 * (count.body + 3 * 2 * 16 * 40)


def test_a_kind_of_memory_without_a_formula_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(flops_memory._FORMULAS, "lact")
    with pytest.raises(UserError, match=r"^memory.rule is 'lact', whose operations nobody has counted"):
        count_flops(with_rule("lact"), T)
