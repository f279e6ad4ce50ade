"""Lengths and depths as a user writes them, and ropes, in which prompts of any length are kept."""

import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.evaluation.lengths import parse_depths, parse_lengths, parse_samples
from neuralmem.evaluation.rope import Rope


@pytest.mark.parametrize(
    ("text", "message"),
    [("4kk", "it must be 4096"), ("0", "it must be 4096"), ("16x", "training length"), (",", "--lengths is empty")],
)
def test_bad_lengths(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_lengths(text)


@pytest.mark.parametrize("text", ["-1", "101", "half"])
def test_bad_depths(text: str) -> None:
    with pytest.raises(UserError, match="it must be percents"):
        parse_depths(text)


def test_more_numbers_of_samples_than_lengths() -> None:
    assert parse_samples("200,50", 3) == (200, 50)
    with pytest.raises(UserError, match=r"--samples is '1,2,3', with more numbers than the 2 of --lengths; .* 1,2$"):
        parse_samples("1,2,3", 2)


def test_rope_is_what_it_is_made_of() -> None:
    pieces = [[1, 2, 3], torch.arange(10, dtype=torch.int32)[4:6], [], [7]]
    rope = Rope(pieces)
    assert rope.slice(0, 99).tolist() == [1, 2, 3, 4, 5, 7]
    for a in range(7):
        for b in range(a, 8):
            assert rope.slice(a, b).tolist() == [1, 2, 3, 4, 5, 7][a:b]
    assert rope.sha256() == Rope([[1, 2, 3, 4, 5, 7]]).sha256() != Rope([[1, 2, 3]]).sha256()
