"""Attention inside a segment of memory-as-context: against the definition, and who sees what."""

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops.attention import attend, attend_segment, rotary_table, rotate


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(slots: int, heads: int = 2, prefix: int = 3, rows: int = 2) -> tuple[list[Tensor], Any]:
    """q, ks, vs, kh, vh and the prefix, float64, head width 4."""
    tensors = [torch.randn(rows, slots, heads, 4, dtype=torch.float64) for _ in range(5)]
    pair = tuple(torch.randn(prefix, heads, 4, dtype=torch.float64) for _ in range(2)) if prefix else None
    return tensors, pair


def loop(q: Tensor, ks: Tensor, vs: Tensor, kh: Tensor, vh: Tensor, prefix: Any) -> Tensor:
    """The definition, one query at a time."""
    out = torch.zeros_like(q)
    table = rotary_table(torch.arange(q.shape[1]), q.shape[-1], 10000.0, q.dtype)
    rotated, key_s, key_h = (rotate(x, table) for x in (q, ks, kh))
    for b, i, n in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        scores = [rotated[b, i, n] @ key[b, j, n] for key in (key_h, key_s) for j in range(i + 1)]
        values = [value[b, j, n] for value in (vh, vs) for j in range(i + 1)]
        if prefix is not None:
            scores += [q[b, i, n] @ x for x in prefix[0][:, n]]
            values += list(prefix[1][:, n])
        out[b, i, n] = (torch.stack(scores) / q.shape[-1] ** 0.5).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("slots", [1, 2, 7])
def test_is_the_definition(slots: int, prefix: int) -> None:
    tensors, pair = make(slots, prefix=prefix)
    torch.testing.assert_close(attend_segment(*tensors, prefix=pair), loop(*tensors, pair), atol=1e-12, rtol=0)


def test_some_slots_are_a_part_of_all_slots() -> None:
    (q, *rest), pair = make(7)
    whole = attend_segment(q, *rest, prefix=pair)
    for first, last in ((0, 3), (2, 5), (6, 7), (4, 4)):
        seen = [x[:, : last + 1] for x in rest]
        part = attend_segment(q[:, first:last], *seen, prefix=pair, first=first)
        torch.testing.assert_close(part, whole[:, first:last], atol=1e-12, rtol=0)


def test_first_slot_per_row() -> None:
    (q, *rest), pair = make(7)
    whole, first = attend_segment(q, *rest, prefix=pair), torch.tensor([1, 4])
    part = attend_segment(torch.stack([q[0, 1:4], q[1, 4:7]]), *rest, prefix=pair, first=first)
    torch.testing.assert_close(part, torch.stack([whole[0, 1:4], whole[1, 4:7]]), atol=1e-12, rtol=0)


def test_nothing_comes_from_later_slots() -> None:
    tensors, pair = make(6)
    out = attend_segment(*tensors, prefix=pair)
    for which in range(5):
        for slot in range(6):
            changed = [x.clone() for x in tensors]
            changed[which][:, slot] += 1
            moved = (attend_segment(*changed, prefix=pair) != out).flatten(2).any(2).any(0).nonzero().flatten()
            assert moved.tolist() == ([slot] if which == 0 else list(range(slot, 6)))


def test_h_equal_to_s_is_plain_attention() -> None:
    # Every token is there twice at half its weight.
    q, ks, vs = make(6)[0][:3]
    torch.testing.assert_close(attend_segment(q, ks, vs, ks, vs), attend(q, ks, vs, window=None, backend="dense"))


@pytest.mark.parametrize("prefix", [0, 2])
def test_gradcheck_twice(prefix: int) -> None:
    tensors, pair = make(4, heads=1, prefix=prefix, rows=1)
    leaves = [x.requires_grad_() for x in (*tensors, *(pair or ()))]

    def function(*x: Tensor) -> Tensor:
        return attend_segment(*x[:5], prefix=x[5:] or None)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_half_precision_is_as_close_as_its_inputs() -> None:
    tensors, pair = make(30)
    half = [x.bfloat16() for x in tensors]
    out = attend_segment(*half, prefix=tuple(x.bfloat16() for x in pair))
    wide = attend_segment(*(x.float() for x in half), prefix=tuple(x.bfloat16().float() for x in pair))
    assert (out.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.float(), wide, atol=0.02, rtol=0.02)


def test_empty_and_wrong_slots() -> None:
    (q, *rest), pair = make(5)
    assert attend_segment(q[:, :0], *rest, prefix=pair).shape == (2, 0, 2, 4)
    with pytest.raises(UserError, match="first is 1; it must be 0 to 0 for 5 queries in 5 slots"):
        attend_segment(q, *rest, first=1)
    with pytest.raises(UserError, match=r"kh has shape .*; it must be"):
        attend_segment(q, *rest[:2], rest[2][:, :3], rest[3])
