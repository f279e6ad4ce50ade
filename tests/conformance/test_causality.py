"""Law 1: a token changes nothing before it. Law 3: samples do not see each other."""

import pytest
import torch

from tests.conformance.subjects import SUBJECTS, Subject, T, assert_close, assert_same_state, each


@each()
@pytest.mark.parametrize("carried", [0, 3], ids=["fresh", "mid-chunk"])
def test_changing_a_token_leaves_every_earlier_output(subject: Subject, carried: int) -> None:
    module, x = subject.build(), subject.draw(1)
    with torch.no_grad():
        state = module(subject.draw(1, carried))[1] if carried else None
        y, _ = module(x, state)
        texts, other = x.repeat(T, *[1] * (x.ndim - 1)), subject.change(x)
        for t in range(T):
            texts[t, t] = other[0, t]
        changed, _ = module(texts, state and state.select([0] * T))
    for t in range(T):
        assert_close(changed[t, :t], y[0, :t], atol=1e-12)
        assert (changed[t, t] - y[0, t]).abs().max() > 1e-9, f"token {t} does not see itself"


@each([s for s in SUBJECTS if s.kind != "model"])
def test_no_gradient_flows_back_in_time(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(1).requires_grad_()
    y, _ = module(x)
    for t in range(T):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        assert not gradient[0, t + 1 :].any()
        assert gradient[0, t].any()


@each()
def test_a_row_alone_is_the_row_in_a_batch(subject: Subject) -> None:
    module, x, more = subject.build(), subject.draw(3), subject.draw(3, 5)
    with torch.no_grad():
        y, state = module(x)
        z, after = module(more, state)
        for row in range(3):
            alone, own = module(x[row : row + 1])
            assert_close(alone[0], y[row])
            assert_same_state(own, state.select([row]))
        order = [2, 0, 0, 1]
        permuted, moved = module(more[order], state.select(order))
    assert_close(permuted, z[order])
    assert_same_state(moved, after.select(order))


@each()
def test_nan_in_one_row_stays_in_that_row(subject: Subject) -> None:
    module, x, before = subject.build(), subject.draw(2), subject.draw(2, 7)
    with torch.no_grad():
        _, state = module(before)
        y, after = module(x, state)
        broken = state.map(lambda s: s.index_fill(0, torch.tensor([0]), float("nan")) if s.is_floating_point() else s)
        z, spoilt = module(x, broken)
    assert_close(z[1], y[1])
    assert_same_state(spoilt.select([1]), after.select([1]))
