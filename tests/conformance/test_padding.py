"""Law 4: masked places, wherever they are, change nothing; rows of different length go on as if each were alone."""

import pytest
import torch
from torch import Tensor

from tests.conformance.subjects import LEARNERS, Subject, T, assert_close, assert_same_state, each, variants

ROWS = 4


def left() -> Tensor:
    """Each row padded in front by another amount, off and on the chunk grid, one not at all."""
    return torch.arange(T) >= torch.tensor([0, 1, 4, 13])[:, None]


def right() -> Tensor:
    return left().flip(1)


def scattered() -> Tensor:
    """Holes anywhere, one row empty, one row full."""
    mask = torch.rand(ROWS, T, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[1], mask[2] = False, True
    return mask


MASKS = pytest.mark.parametrize("mask", [left(), right(), scattered()], ids=["left", "right", "scattered"])


def check_against_each_row_alone(subject: Subject, mask: Tensor, **options: str) -> None:
    """Read under a mask, then on under another one, and compare with each row's real tokens read alone."""
    module, x, more = subject.build(), subject.draw(ROWS), subject.draw(ROWS, 9)
    then = scattered()[:, :9].roll(1, 0)
    with torch.no_grad():
        y, state = module(x, mask=mask, **options)
        z, after = module(more, state, mask=then, **options)
        assert not y[~mask].any()
        assert not z[~then].any()
        for row in range(ROWS):
            own = module.init_state(1)
            if mask[row].any():
                alone, own = module(x[row][mask[row]][None], own, **options)
                assert_close(y[row][mask[row]], alone[0])
            assert_same_state(state.select([row]), own)
            if then[row].any():
                alone, own = module(more[row][then[row]][None], own, **options)
                assert_close(z[row][then[row]], alone[0])
            assert_same_state(after.select([row]), own)


@each()
@MASKS
def test_padding_changes_nothing_and_rows_go_on_ragged(subject: Subject, mask: Tensor) -> None:
    check_against_each_row_alone(subject, mask)


@each(variants())
def test_padding_changes_nothing_at_unusual_settings(subject: Subject) -> None:
    check_against_each_row_alone(subject, scattered())


@each(LEARNERS)
@pytest.mark.parametrize("mode", ["frozen", "off"])
def test_padding_changes_nothing_without_writing(subject: Subject, mode: str) -> None:
    check_against_each_row_alone(subject, scattered(), memory=mode)


@each()
def test_what_stands_in_a_masked_place_does_not_matter(subject: Subject) -> None:
    module, x, mask = subject.build(), subject.draw(ROWS), scattered()
    wide = mask if subject.kind == "model" else mask[..., None]
    with torch.no_grad():
        y, state = module(x, mask=mask)
        z, same = module(torch.where(wide, x, subject.change(x)), mask=mask)
    assert_close(z, y, atol=1e-12)
    assert_same_state(same, state, atol=1e-12)


@each()
def test_a_mask_of_ones_is_no_mask(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(2)
    with torch.no_grad():
        y, state = module(x)
        z, same = module(x, mask=torch.ones(2, T, dtype=torch.bool))
    assert_close(z, y)
    assert_same_state(same, state)


@each()
def test_gradients_through_a_mask_are_those_of_the_real_tokens(subject: Subject) -> None:
    module, x = subject.build(), subject.draw(1)
    mask = scattered()[:1]
    y, _ = module(x, mask=mask)
    alone, _ = module(x[mask][None])
    parameters = list(module.parameters())
    masked = torch.autograd.grad(y.square().sum(), parameters)
    for one, other in zip(masked, torch.autograd.grad(alone.square().sum(), parameters), strict=True):
        assert_close(one, other, atol=1e-10 * max(1.0, float(one.abs().max())))
