"""Rotary positions: what a distance does to a product, and precision far down the stream."""

import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.ops.attention import rotary_table, rotate


def product(query: torch.Tensor, key: torch.Tensor, at: int, and_at: int) -> torch.Tensor:
    """The score of a query at one position and a key at another, [1, 1, N, D] each."""
    width, dtype = query.shape[-1], torch.promote_types(query.dtype, torch.float32)
    turned = (
        rotate(x, rotary_table(torch.tensor([p]), width, 10000.0, dtype)) for x, p in ((query, at), (key, and_at))
    )
    return (next(turned) * next(turned)).sum(-1)


@pytest.mark.parametrize("shift", [1, 1000, 1_000_000_000])
def test_product_depends_on_the_distance_only(shift: int) -> None:
    query, key = torch.randn(2, 1, 1, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(product(query, key, 9 + shift, 4 + shift), product(query, key, 9, 4), atol=1e-6, rtol=0)
    assert not torch.allclose(product(query, key, 9, 4), product(query, key, 9, 5))


def test_float32_is_precise_a_million_tokens_in() -> None:
    query, key = torch.randn(2, 1, 1, 1, 64)
    torch.testing.assert_close(product(query, key, 1_000_005, 1_000_000), product(query, key, 5, 0), atol=2e-5, rtol=0)


def test_pairs_turn_by_the_papers_frequencies() -> None:
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    turned = rotate(x, rotary_table(torch.arange(5), 6, 100.0, torch.float64))
    for pair in range(3):
        turn = torch.exp(1j * torch.arange(5).double() * 100.0 ** (-2 * pair / 6))
        expected = torch.complex(x[..., pair], x[..., pair + 3]) * turn[:, None]
        torch.testing.assert_close(turned[..., pair], expected.real)
        torch.testing.assert_close(turned[..., pair + 3], expected.imag)


def test_positions_per_row() -> None:
    x = torch.randn(2, 3, 1, 4)
    positions = torch.tensor([[0, 1, 2], [5, 6, 9]])
    together = rotate(x, rotary_table(positions, 4, 10.0, torch.float32))
    for row in range(2):
        alone = rotate(x[row : row + 1], rotary_table(positions[row], 4, 10.0, torch.float32))
        torch.testing.assert_close(together[row : row + 1], alone)


def test_keeps_dtype_and_norm() -> None:
    x = torch.randn(1, 7, 2, 4, dtype=torch.bfloat16)
    turned = rotate(x, rotary_table(torch.arange(7), 4, 10000.0, torch.float32))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), atol=0.02, rtol=0.01)


def test_odd_width_is_refused() -> None:
    with pytest.raises(UserError, match="head width is 5; it must be even"):
        rotary_table(torch.arange(3), 5, 10000.0, torch.float32)
