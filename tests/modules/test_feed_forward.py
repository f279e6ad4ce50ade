"""SwiGLU: the formula, token by token."""

import torch

from neuralmem.modules.feed_forward import FeedForward


def test_it_is_the_papers_formula() -> None:
    layer, x = FeedForward(4, 7), torch.randn(2, 3, 4)
    gate, value = (x @ layer.up.weight.T).split(7, dim=-1)
    expected = (gate * gate.sigmoid() * value) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_tokens_do_not_see_each_other() -> None:
    layer, x = FeedForward(4, 7), torch.randn(1, 3, 4)
    torch.testing.assert_close(layer(x)[:, 1:2], layer(x[:, 1:2]))
