"""Law 2, the cut law: a text cut into calls in any way gives the logits, the state and the gradients of one call."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conformance.subjects import LEARNERS, Subject, T, assert_close, assert_same_state, each, read, variants


@st.composite
def cuts(draw: st.DrawFn) -> list[int]:
    """Lengths that sum to T; calls without a token and of one token among them."""
    points = draw(st.lists(st.integers(0, T), max_size=8))
    edges = [0, *sorted(points), T]
    return [b - a for a, b in pairwise(edges)]


@each()
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(lengths=cuts())
@example(lengths=[1] * T)
@example(lengths=[0, T, 0])
@example(lengths=[6, 0, 6, 6, 1])
def test_any_cut_gives_the_same_outputs_and_state(subject: Subject, lengths: list[int]) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        y, state = module(x)
        z, cut = read(module, x, lengths)
    assert_close(z, y)
    assert_same_state(cut, state)


@each()
def test_any_cut_gives_the_same_gradients(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    gradients = []
    for lengths in ([T], [1, 2, 5, 1, 7, 3]):
        y, state = read(module, x, lengths)
        kept = sum(s.square().sum() for _, s in state.items() if s.is_floating_point())
        gradients.append(torch.autograd.grad(y.square().sum() + kept, list(module.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert_close(other, one, atol=1e-10 * max(1.0, float(one.abs().max())))


@each(LEARNERS)
@pytest.mark.parametrize("mode", ["frozen", "off"])
def test_any_cut_gives_the_same_without_writing(subject: Subject, mode: str) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        y, state = module(x, memory=mode)
        z, cut = read(module, x, [3, 1, 1, 8, 6], memory=mode)
    assert_close(z, y)
    assert_same_state(cut, state)


@each(variants())
def test_any_cut_gives_the_same_at_unusual_settings(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        y, state = module(x)
        for lengths in ([1] * T, [5, 1, 6, 4, 3]):
            z, cut = read(module, x, lengths)
            assert_close(z, y)
            assert_same_state(cut, state)


@each()
def test_the_state_before_the_first_token_is_none_or_init_state(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        y, state = module(x, None)
        z, same = module(x, module.init_state(2))
    assert_close(z, y)
    assert_same_state(same, state)


@each()
def test_a_call_without_a_real_token_changes_nothing(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        _, state = module(x[:, :5])
        y, after = module(x, state, mask=torch.zeros(2, T, dtype=torch.bool))
    assert not y.any()
    assert_same_state(after, state, atol=0)
