"""Streams and grids: masks, document starts and unfinished units, on a stream simple enough to check by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from neuralmem.errors import UserError
from neuralmem.modules.grid import lay_out
from neuralmem.modules.stream import Rows, Stream
from neuralmem.state import State


@dataclass(frozen=True)
class Count(State):
    seen: Tensor


class Counter(Stream):
    """Numbers the tokens of each document, going on where the state stands."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def init_state(self, batch_size: int) -> Count:
        return Count(torch.zeros(batch_size, dtype=torch.long))

    def advance(self, x: Tensor, state: Count | None, rows: Rows, memory: str) -> tuple[Tensor, Count]:
        state = state or self.init_state(len(x))
        numbers, seen = torch.zeros_like(x), state.seen.clone()
        for t in range(x.shape[1]):
            if rows.reset is not None:
                seen = torch.where(rows.reset[:, t], 0, seen)
            seen = seen + (1 if rows.mask is None else rows.mask[:, t].long())
            numbers[:, t] = seen
        return numbers, Count(seen)


def read(mask: list[list[int]], reset: list[list[int]] | None = None, start: int = 0) -> tuple[list, list]:
    real = torch.tensor(mask, dtype=torch.bool)
    starts = None if reset is None else torch.tensor(reset, dtype=torch.bool)
    state = Count(torch.full((len(mask),), start))
    y, state = Counter()(torch.zeros(real.shape, dtype=torch.long), state, mask=real, reset=starts)
    return y.tolist(), state.seen.tolist()


def test_rows_are_aligned_to_the_left_and_scattered_back() -> None:
    y, seen = read([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]])
    assert y == [[0, 1, 0, 2], [1, 2, 3, 4], [0, 0, 0, 0], [1, 0, 0, 2]]
    assert seen == [2, 4, 0, 2]


def test_a_reset_travels_with_its_token() -> None:
    y, seen = read([[0, 1, 1, 0, 1]], [[0, 0, 1, 0, 0]], start=5)
    assert y == [[0, 6, 1, 0, 2]]
    assert seen == [2]


def test_a_reset_on_padding_is_no_reset() -> None:
    y, seen = read([[1, 0, 1]], [[0, 1, 0]], start=5)
    assert (y, seen) == ([[6, 0, 7]], [7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(2, 3)}, "mask has dtype torch.float32; it must be torch.bool"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask has shape [2, 4]; it must be [2, 3]"),
        ({"reset": torch.ones(3, dtype=torch.bool)}, "reset has shape [3]; it must be [2, 3]"),
        ({"memory": "of"}, "memory is 'of'; it must be one of on, frozen, off"),
        ({"state": Count(torch.zeros(3))}, "batch size is 2, but the state has 3 rows"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        Counter()(torch.zeros(2, 3), **options)
    assert str(error.value).startswith(message)


def test_documents_are_counted_from_the_one_that_the_state_continues() -> None:
    rows = Rows(reset=torch.tensor([[False, True, False, True], [True, False, False, False]]))
    assert rows.document.tolist() == [[0, 1, 1, 2], [1, 1, 1, 1]]
    assert not rows.plain
    assert Rows().plain
    assert rows.carried(torch.tensor([7, 7]), 4, 100).tolist() == [1, 4]
    assert Rows().carried(torch.tensor([7, 98]), 4, 100).tolist() == [11, 100]


def brute_force(mask: Tensor, reset: Tensor, filled: Tensor, unit: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Slots of the real tokens, one past the last taken slot, slots before the unfinished unit; one token at a time."""
    slots, ends, completes = [], [], []
    for row in range(len(mask)):
        at, base, taken = int(filled[row]), 0, []
        for t in range(mask.shape[1]):
            if not mask[row, t]:
                continue
            if reset[row, t]:
                at = base = -(-at // unit) * unit
            taken.append(at)
            at += 1
        slots.append(taken)
        ends.append(at)
        completes.append(base + (at - base) // unit * unit)
    return slots, ends, completes


@pytest.mark.parametrize("unit", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_the_grid_is_what_counting_token_by_token_gives(unit: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    length = torch.randint(0, 12, (6, 1), generator=random)
    mask = torch.arange(11) < length
    reset = (torch.rand(6, 11, generator=random) < 0.3) & mask
    filled = torch.randint(0, unit, (6,), generator=random)
    grid = lay_out(Rows(mask, reset), (6, 11), filled, unit)
    slots, ends, completes = brute_force(mask, reset, filled, unit)
    assert [grid.slot[row][mask[row]].tolist() for row in range(6)] == slots
    assert grid.end.tolist() == ends
    assert grid.complete.tolist() == completes
    assert grid.size % unit == 0
    assert grid.size >= max(ends)
    tokens = torch.arange(1, 67).view(6, 11, 1) * mask[..., None]
    assert torch.equal(grid.take(grid.place(tokens)) * mask[..., None], tokens)
    assert torch.equal(grid.real().sum(1), mask.sum(1))
    for row in range(6):
        firsts = {slots[row][i] for i, t in enumerate(mask[row].nonzero()[:, 0].tolist()) if reset[row, t]}
        assert set(grid.starts[row].nonzero()[:, 0].tolist()) == firsts


def test_a_grid_continues_an_unfinished_unit() -> None:
    grid = lay_out(Rows(), (1, 3), torch.tensor([2]), unit=4)
    front = torch.tensor([[[7], [8], [0]]])
    placed = grid.place(torch.tensor([[[1], [2], [3]]]), front)
    assert placed[0, :, 0].tolist() == [7, 8, 1, 2, 3, 0, 0, 0]
    assert grid.taken().tolist() == [[True] * 5 + [False] * 3]
    assert (grid.end.tolist(), grid.complete.tolist()) == ([5], [4])


def test_a_grid_of_nothing_is_empty() -> None:
    grid = lay_out(Rows(), (2, 0), torch.zeros(2, dtype=torch.long), unit=4)
    assert grid.size == 0
    assert grid.take(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
