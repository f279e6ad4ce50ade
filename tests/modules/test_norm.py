"""RMSNorm: the formula, and statistics in float32 whatever comes in."""

import pytest
import torch

from neuralmem.modules.norm import RMSNorm


def test_it_is_the_papers_formula() -> None:
    norm, x = RMSNorm(6, eps=1e-5).double(), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        norm.gain.copy_(torch.randn(6))
    expected = x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.gain
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 4096), 200.0, dtype=dtype)  # whose square float16 cannot hold
    y = RMSNorm(4096)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), torch.ones(1, 4096), atol=0.01, rtol=0)


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = RMSNorm(4)(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()
