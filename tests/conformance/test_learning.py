"""Law 9: a memory learns what it reads, further than attention sees. Law 10: in eval mode and without gradients too.

Reach is measured: with the memory frozen, the farthest token whose change alters a logit.
"""

import sys
from dataclasses import replace

import pytest
import torch

from neuralmem.config import MemoryConfig
from neuralmem.evaluation.measured_reach import measured_reach
from neuralmem.layers.titans_mac import TitansMAC
from neuralmem.memory._rule import MemoryRule
from neuralmem.modules.stream import Rows
from neuralmem.probe import recording
from tests.conformance.subjects import (
    LEARNERS,
    MODELS,
    SUBJECTS,
    Subject,
    T,
    assert_close,
    assert_identical,
    each,
    variants,
)

RULES = [s for s in SUBJECTS if s.kind == "rule"]


@each(RULES)
def test_reading_again_lowers_what_surprises(subject: Subject) -> None:
    """At the rule's own defaults, not at the conformance suite's strong ones."""
    torch.manual_seed(1)
    config = replace(subject.config, width=32, memory=MemoryConfig(rule=subject.name))
    rule, x = subject.construct(config).double(), torch.randn(2, 40, 32, dtype=torch.float64)
    state, errors = rule.init_state(2), []
    with torch.no_grad():
        for _ in range(4):
            errors.append(float(rule.recall_error(x, state)))
            _, state = rule(x, state)
    assert max(errors[1:]) < 0.9 * errors[0]


@each(RULES)
def test_what_is_observed_as_surprise_falls_when_a_text_is_read_again(subject: Subject) -> None:
    torch.manual_seed(1)
    config = replace(subject.config, width=32, memory=MemoryConfig(rule=subject.name, chunk_size=8))
    rule, x = subject.construct(config).double(), torch.randn(2, 24, 32, dtype=torch.float64)
    state, seen = rule.init_state(2), []
    with torch.no_grad():
        for _ in range(2):
            with recording(rule) as record:
                _, state = rule(x, state)
            seen.append(record.means()["/surprise"])
    assert seen[1] < 0.9 * seen[0]


@each([s for s in RULES if isinstance(s.build(), MemoryRule)])
def test_after_reading_most_keys_answer_with_their_own_value_at_a_large_head_width(subject: Subject) -> None:
    """A memory that lost itself may be near every value; only one that knows is nearest to the right one."""
    torch.manual_seed(1)
    config = replace(subject.config, width=64, memory=MemoryConfig(rule=subject.name, heads=1))
    rule, x = subject.construct(config), torch.randn(1, 64, 64)
    state = None
    with torch.no_grad():
        for _ in range(3):
            _, state = rule(x, state)
        _, (keys, values, *_), _ = rule.project(x, rule.init_state(1).convolution, Rows())
        said = rule.evaluate(keys, rule.close(state).weights)
    said, values = (u[0, :, 0] - u[0, :, 0].mean(0) for u in (said, values))
    nearest = torch.nn.functional.cosine_similarity(said[:, None], values[None], dim=-1).argmax(1)
    assert (nearest == torch.arange(64)).float().mean() > 0.5  # chance is 1 in 64


@each([s for s in MODELS if s in LEARNERS])
def test_editing_the_first_chunk_changes_what_is_recalled_beyond_reach(subject: Subject) -> None:
    module = subject.build()
    x = subject.draw(1, module.reach + 12)
    edited = x.clone()
    edited[:, :4] = subject.change(x[:, :4])
    beyond = slice(module.reach + 4, None)
    with torch.no_grad():
        for mode, changes in (("on", True), ("frozen", False), ("off", False)):
            y, z = (module(text, memory=mode)[0][:, beyond] for text in (x, edited))
            assert (y - z).abs().max() > 1e-6 if changes else torch.equal(y, z)


@each(LEARNERS)
def test_the_three_modes_differ_and_only_one_writes(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        (on, _), (frozen, a), (off, b) = (module(x, memory=mode) for mode in ("on", "frozen", "off"))
        start = dict(module.init_state(2).items())
    assert (on - frozen).abs().max() > 1e-6
    assert (frozen - off).abs().max() > 1e-6
    for state in (a, b):
        for name, weight in state.items():
            if any(part in name for part in ("weights", "momentum", "pending")):
                assert torch.equal(weight, start[name]), name


@each(RULES)
def test_off_is_zero(subject: Subject) -> None:
    module = subject.build()
    assert not module(subject.draw(2), memory="off")[0].any()


@each(RULES)
def test_retrieve_reads_what_was_written_and_writes_nothing(subject: Subject) -> None:
    rule, x, question = subject.build(), subject.draw(2), subject.draw(2, 3)
    with torch.no_grad():
        _, state = rule(x)
        copy = state.clone()
        answer = rule.retrieve(question, state)
        assert_identical(state, copy)
        assert_close(answer, rule.recall(question, rule.close(state).weights))
        assert (answer - rule.retrieve(question, rule.init_state(2))).abs().max() > 1e-6
        assert_close(rule.retrieve(question[:, 1:2], state), answer[:, 1:2])


@each()
def test_eval_and_no_grad_and_inference_mode_change_nothing(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    y, state = module(x)
    results = []
    with torch.no_grad():
        results.append(module(x))
    with torch.inference_mode():
        results.append(module(x))
    module.eval()
    results.append(module(x))
    for z, same in results:
        assert torch.equal(z, y)
        assert_identical(same, state)
    if module.has_memory:
        start = dict(module.init_state(2).items())
        weights = [(name, w) for name, w in state.items() if ".weights." in f".{name}"]
        assert weights
        assert all(not torch.equal(w, start[name]) for name, w in weights)


@each()
def test_a_state_from_inference_mode_can_be_read_on_outside(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.inference_mode():
        _, state = module(x[:, :7])
    with torch.no_grad():
        y, _ = module(x[:, 7:], state)
        whole, _ = module(x)
    assert_close(y, whole[:, 7:])
    z, _ = module(x[:, 7:], state.clone())
    z.sum().backward()


def exact_reach(subject: Subject, tokens: int) -> int:
    """The farthest token whose change alters a logit while the memory is frozen, of all tokens of a text."""
    module, x = subject.build(), subject.draw(1, tokens)
    changed, other = x.repeat(tokens, 1), subject.change(x)
    for t in range(tokens):
        changed[t, t] = other[0, t]
    with torch.no_grad():
        y, z = module(x, memory="frozen")[0], module(changed, memory="frozen")[0]
    altered = ((z - y).abs().amax(-1) > 1e-14).nonzero()
    return int((altered[:, 1] - altered[:, 0]).max())


@each([*MODELS, *variants()])
def test_measured_reach_is_what_the_model_says(subject: Subject) -> None:
    module = subject.build()
    if module.reach == sys.maxsize:
        assert exact_reach(subject, 40) == 39
    elif any(isinstance(layer, TitansMAC) for layer in module.layers[1:]):
        # From the second MAC on segments align: no token is both as far in one segment as in the next.
        assert module.reach // 2 <= exact_reach(subject, module.reach + 12) <= module.reach
    else:
        assert exact_reach(subject, module.reach + 12) == module.reach
        assert measured_reach(module) == module.reach


def test_reach_is_measured_piece_by_piece_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few logits at once, so that a large vocabulary costs no memory; nothing where it would take minutes."""
    subject = next(s for s in MODELS if s.config.pattern == ["titans_mag"])
    module = subject.build()
    monkeypatch.setattr("neuralmem.evaluation.measured_reach.LOGITS", 1)
    assert measured_reach(module) == module.reach
    monkeypatch.setattr("neuralmem.evaluation.measured_reach.WORK", 1.0)
    assert measured_reach(module) is None


def test_measured_reach_of_one_mac_layer_is_what_it_says() -> None:
    mac = next(s for s in MODELS if s.config.pattern == ["titans_mac"])
    single = replace(mac, config=replace(mac.config, depth=1))
    assert exact_reach(single, 30) == single.build().reach == 8


def test_reach_of_a_pattern_is_the_sum_of_its_layers() -> None:
    # window 5, segment 6, convolution 4: 4, 3, 5 + 3, max(4, 3), 4 + 3
    expected = {"transformer": 4, "titans_lmm": 3, "titans_mac": 8, "titans_mag": 4, "titans_mal": 7}
    for subject in MODELS:
        if len(subject.config.pattern) == 1 and subject.config.pattern[0] in expected:
            assert subject.build().reach == 2 * expected[subject.config.pattern[0]]


@pytest.mark.parametrize("mode", ["frozen", "off"])
def test_a_model_without_memory_does_not_care_about_the_mode(mode: str) -> None:
    for subject in MODELS:
        if subject not in LEARNERS:
            module, x = subject.build(), subject.draw(1, T)
            assert torch.equal(module(x, memory=mode)[0], module(x)[0])
