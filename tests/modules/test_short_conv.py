"""The short convolution: torch's own, causal, with a tail that knows documents and padding."""

import pytest
import torch
from torch.nn import functional as F

from neuralmem.modules.short_conv import ShortConv
from neuralmem.modules.stream import Rows

TAPS, WIDTH = 4, 3


@pytest.fixture
def conv() -> ShortConv:
    return ShortConv(WIDTH, TAPS).double()


def draw(batch: int, tokens: int) -> torch.Tensor:
    return torch.randn(batch, tokens, WIDTH, dtype=torch.float64)


def test_it_is_torchs_depthwise_convolution(conv: ShortConv) -> None:
    x = draw(2, 9)
    y, _ = conv(x, conv.init_state(2), Rows())
    kernel = conv.weight.flip(0).T[:, None]  # torch's last tap meets the current token
    expected = F.conv1d(F.pad(x.mT, (TAPS - 1, 0)), kernel, groups=WIDTH).mT
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 8, 9])
def test_the_tail_continues_the_stream(conv: ShortConv, cut: int) -> None:
    x = draw(2, 9)
    whole, end = conv(x, conv.init_state(2), Rows())
    a, tail = conv(x[:, :cut], conv.init_state(2), Rows())
    b, tail = conv(x[:, cut:], tail, Rows())
    torch.testing.assert_close(torch.cat([a, b], 1), whole)
    torch.testing.assert_close(tail, end)
    torch.testing.assert_close(tail, x[:, -3:])


def test_the_tail_holds_the_last_real_tokens_of_each_row(conv: ShortConv) -> None:
    x, old = draw(3, 4), draw(3, 3)
    mask = torch.arange(4) < torch.tensor([0, 1, 4])[:, None]
    _, tail = conv(x, old, Rows(mask))
    torch.testing.assert_close(tail[0], old[0])
    torch.testing.assert_close(tail[1], torch.cat([old[1, 1:], x[1, :1]]))
    torch.testing.assert_close(tail[2], x[2, 1:])


def test_a_document_does_not_see_the_one_before_it(conv: ShortConv) -> None:
    x = draw(1, 7)
    reset = torch.tensor([[False, False, True, True, False, False, False]])
    y, tail = conv(x, draw(1, 3), Rows(reset=reset))
    alone, end = conv(x[:, 3:], conv.init_state(1), Rows())
    torch.testing.assert_close(y[:, 3:], alone)
    torch.testing.assert_close(tail, end)
    _, short = conv(x[:, :4], draw(1, 3), Rows(reset=reset[:, :4]))
    assert not short[:, :2].any()
    torch.testing.assert_close(short[:, 2], x[:, 3])


def test_one_tap_keeps_no_tail() -> None:
    conv = ShortConv(WIDTH, 1)
    x = torch.randn(2, 5, WIDTH)
    y, tail = conv(x, conv.init_state(2), Rows())
    torch.testing.assert_close(y, x * conv.weight[0])
    assert tail.shape == (2, 0, WIDTH)
