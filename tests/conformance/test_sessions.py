"""What a session leaves to the next one: `memory_only` keeps what was learned and nothing that was merely seen."""

from dataclasses import replace

import pytest
import torch

from tests.conformance.subjects import (
    MODELS,
    SUBJECTS,
    TINY,
    Subject,
    assert_close,
    assert_identical,
    each,
    learns,
    variants,
)

EVERYWHERE = [*MODELS, *variants()]
RULES = [s for s in SUBJECTS if s.kind == "rule"]
MAC = [s for s in SUBJECTS if s.kind == "layer" and s.name.startswith("titans_mac")]


@each(EVERYWHERE)
def test_nothing_that_was_seen_is_left(subject: Subject) -> None:
    module, later = subject.build(), subject.draw(2, 9)
    with torch.no_grad():
        _, state = module(subject.draw(2))
        kept = module.memory_only(state)
        for memory in ("off", "frozen"):
            assert_close(module(later, kept, memory=memory)[0], module(later, memory=memory)[0])
        changed = (module(later, kept)[0] - module(later)[0]).abs().max() > 1e-6
    assert bool(changed) == learns(subject), "what was learned is left, and only that"


@each(MODELS)
def test_the_state_goes_on_and_is_not_changed(subject: Subject) -> None:
    module, later = subject.build(), subject.draw(2, 9)
    with torch.no_grad():
        _, state = module(subject.draw(2))
        before = state.clone()
        kept = module.memory_only(state)
        assert_identical(state, before)
        assert torch.equal(kept.position, state.position)
        assert {name: x.dtype for name, x in kept.items()} == {name: x.dtype for name, x in state.items()}
        whole, _ = module(later, kept)
        first, then = module(later[:, :4], kept)
        assert_close(torch.cat([first, module(later[:, 4:], then)[0]], 1), whole)


@each(RULES)
def test_a_memory_recalls_the_same(subject: Subject) -> None:
    rule, asked = subject.build(), subject.draw(2, 5)
    with torch.no_grad():
        _, state = rule(subject.draw(2))
        assert torch.equal(rule.retrieve(asked, state.without_context()), rule.retrieve(asked, state))


@each(MAC)
@pytest.mark.parametrize("tokens", [18, 19], ids=["whole segments", "an unfinished one"])
def test_an_unfinished_segment_enters_the_memory(subject: Subject, tokens: int) -> None:
    layer, asked = subject.build(), subject.draw(2, 5)
    with torch.no_grad():
        _, state = layer(subject.draw(2, tokens))
        kept = layer.memory_only(state)
        assert_close(layer.memory.retrieve(asked, kept.memory), layer.memory.retrieve(asked, state.memory))
        assert_close(layer.memory.recall(asked, kept.anchor), layer.memory.retrieve(asked, state.memory))


def test_a_model_that_is_memory_alone_reads_on_as_if_nothing_was_dropped() -> None:
    alone = replace(TINY, pattern=["titans_lmm"], memory=replace(TINY.memory, convolution=1))
    subject = replace(next(s for s in MODELS if s.config.pattern == ["titans_lmm"]), config=alone)
    module, text = subject.build(), subject.draw(2)
    with torch.no_grad():
        _, state = module(text[:, :7])
        assert_identical(module.memory_only(state), state)
