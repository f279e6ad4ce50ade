"""Law 5: at a document's first token everything starts anew: outputs, state, and no gradient crosses."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from neuralmem.modules.attention import Attention
from neuralmem.modules.stream import Stream
from tests.conformance.subjects import LEARNERS, SUBJECTS, Subject, T, assert_close, assert_same_state, each, variants

# First tokens of documents, one row each, for chunks of 4 and segments of 6.
STARTS = {
    "first token": [0],
    "second token": [1],
    "three in a row": [7, 8, 9],
    "chunk starts": [4, 8, 16],
    "segment starts": [6, 12],
    "off the grid": [3, 10, 15],
    "first and last": [0, T - 1],
    "none": [],
}


def resets() -> Tensor:
    reset = torch.zeros(len(STARTS), T, dtype=torch.bool)
    for row, starts in enumerate(STARTS.values()):
        reset[row, starts] = True
    return reset


def read_documents(module: Stream, x: Tensor, reset: Tensor, state, **options: str):
    """One row, document by document, each with a fresh state; the first may go on from `state`."""
    edges = [0, *[t for t in reset.nonzero()[:, 0].tolist() if t], len(reset)]
    outputs = []
    for a, b in pairwise(edges):
        if reset[a]:
            state = None
        y, state = module(x[None, a:b], state, **options)
        outputs.append(y[0])
    return torch.cat(outputs), state


def check_against_fresh_states(subject: Subject, carried: int, **options: str) -> None:
    module, reset = subject.build(), resets()
    x = subject.draw(len(reset))
    with torch.no_grad():
        before = module(subject.draw(len(reset), carried), **options)[1] if carried else None
        y, state = module(x, before, reset=reset, **options)
        for row in range(len(reset)):
            own = before and before.select([row])
            expected, after = read_documents(module, x[row], reset[row], own, **options)
            assert_close(y[row], expected)
            assert_same_state(state.select([row]), after)


@each()
@pytest.mark.parametrize("carried", [0, 7, 12], ids=["fresh", "mid-chunk", "on the grid"])
def test_a_reset_gives_what_a_fresh_state_gives(subject: Subject, carried: int) -> None:
    check_against_fresh_states(subject, carried)


@each(variants())
def test_a_reset_gives_what_a_fresh_state_gives_at_unusual_settings(subject: Subject) -> None:
    check_against_fresh_states(subject, 7)


@each(LEARNERS)
@pytest.mark.parametrize("mode", ["frozen", "off"])
def test_a_reset_gives_what_a_fresh_state_gives_without_writing(subject: Subject, mode: str) -> None:
    check_against_fresh_states(subject, 7, memory=mode)


@each()
def test_resets_and_padding_together(subject: Subject) -> None:
    module, reset = subject.build(), resets()
    x = subject.draw(len(reset))
    mask = (torch.rand(reset.shape, generator=torch.Generator().manual_seed(5)) > 0.4) | reset
    with torch.no_grad():
        before = module(subject.draw(len(reset), 7))[1]
        y, state = module(x, before, mask=mask, reset=reset)
        for row, real in enumerate(mask):
            expected, after = read_documents(module, x[row][real], reset[row][real], before.select([row]))
            assert_close(y[row][real], expected)
            assert_same_state(state.select([row]), after)


@each()
def test_a_document_can_be_cut_anywhere(subject: Subject) -> None:
    module, reset = subject.build(), resets()
    x = subject.draw(len(reset))
    with torch.no_grad():
        y, state = module(x, reset=reset)
        cut, outputs = None, []
        for a, b in ((0, 1), (1, 7), (7, 8), (8, 10), (10, T)):
            z, cut = module(x[:, a:b], cut, reset=reset[:, a:b])
            outputs.append(z)
    assert_close(torch.cat(outputs, 1), y)
    assert_same_state(cut, state)


@each(LEARNERS)
@pytest.mark.parametrize("mode", ["frozen", "off"])
def test_a_reset_forgets_even_while_nothing_is_written(subject: Subject, mode: str) -> None:
    module, x, reset = subject.build(), subject.draw(2), torch.arange(T)[None] == torch.tensor([[5], [T]])
    with torch.no_grad():
        _, before = module(subject.draw(2, 7))
        _, state = module(x, before, reset=reset, memory=mode)
        _, fresh = module(x[:1, 5:], memory=mode)
        _, kept = module(x[1:], before.select([1]), memory=mode)
    assert_same_state(state.select([0]), fresh)
    assert_same_state(state.select([1]), kept)


@each()
def test_no_gradient_crosses_a_reset(subject: Subject) -> None:
    module, x, start = subject.build(), subject.draw(1), 9
    with torch.no_grad():
        before = module(subject.draw(1, 7))[1]
    before = before.map(lambda s: s.detach().requires_grad_() if s.is_floating_point() else s)
    seen = []
    if subject.kind == "model":
        module.embedding.register_forward_hook(lambda _module, _inputs, y: seen.append(y))
    else:
        seen.append(x.requires_grad_())
    y, after = module(x, before, reset=torch.arange(T)[None] == start)
    kept = sum(s.square().sum() for _, s in after.items() if s.is_floating_point())
    floats = [s for _, s in before.items() if s.is_floating_point()]
    late = torch.autograd.grad(
        y[:, start:].square().sum() + kept, [seen[0], *floats], allow_unused=True, retain_graph=True
    )
    assert late[0][:, start:].any()
    assert not late[0][:, :start].any()
    assert not any(g is not None and g.any() for g in late[1:])
    early = torch.autograd.grad(y[:, :start].square().sum(), floats, allow_unused=True)
    assert any(g is not None and g.any() for g in early), "the carried state was not read at all"


@each([s for s in SUBJECTS if not any(isinstance(m, Attention) for m in s.build().modules())])
def test_a_reset_cures_a_memory_that_is_not_finite(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(1)
    with torch.no_grad():
        state = module(subject.draw(1, 7))[1]
        broken = state.map(lambda s: torch.full_like(s, float("nan")) if s.is_floating_point() else s)
        y, after = module(x, broken, reset=torch.arange(T)[None] == 0)
        fresh, expected = module(x)
    assert_close(y, fresh)
    assert_same_state(after, expected)
