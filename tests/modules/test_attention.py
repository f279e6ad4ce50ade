"""The attention module: its cache holds the window, knows documents and padding, and stays that size."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from neuralmem.config import AttentionConfig
from neuralmem.errors import UserError
from neuralmem.modules.attention import Attention, split_heads

CONFIG = AttentionConfig(heads=2, window=4, persistent_tokens=3)


def build(**changes: object) -> Attention:
    return Attention(8, replace(CONFIG, **changes)).double()


def draw(batch: int, tokens: int) -> Tensor:
    return torch.randn(batch, tokens, 8, dtype=torch.float64)


def test_equal_tokens_give_their_own_value_unless_persistent_tokens_are_mixed_in() -> None:
    x = draw(1, 1).repeat(1, 6, 1)
    for module, own in ((build(persistent_tokens=0), True), (build(), False)):
        value = module.output(module.value(x))
        assert torch.allclose(module(x)[0], value) is own


def test_the_cache_holds_the_last_keys_and_values_of_the_window() -> None:
    module, x = build(), draw(2, 9)
    _, state = module(x)
    torch.testing.assert_close(state.keys, split_heads(module.key(x[:, -3:]), 2))
    torch.testing.assert_close(state.values, split_heads(module.value(x[:, -3:]), 2))
    assert state.filled.tolist() == [3, 3]


def test_the_cache_of_a_short_text_is_zero_where_nothing_was() -> None:
    module, x = build(), draw(1, 2)
    _, state = module(x)
    assert not state.keys[:, 0].any()
    assert state.filled.tolist() == [2]


def test_a_window_of_none_remembers_everything() -> None:
    module, x = build(window=None), draw(1, 9)
    _, state = module(x[:, :5])
    y, state = module(x[:, 5:], state)
    assert state.keys.shape[1] == 9
    assert module.reach is None
    torch.testing.assert_close(y, module(x)[0][:, 5:])


def test_a_window_longer_than_the_text_is_full_attention() -> None:
    torch.manual_seed(3)
    wide = build(window=50)
    torch.manual_seed(3)
    full, x = build(window=None), draw(2, 12)
    torch.testing.assert_close(wide(x)[0], full(x)[0])


def test_far_down_a_stream_it_answers_as_at_its_start() -> None:
    """Positions are relative: what is beyond the window leaves no trace, however long the stream."""
    module, x = build(), draw(1, 8)
    _, state = module(draw(1, 1000))
    later, _ = module(x, state)
    start, _ = module(x)
    torch.testing.assert_close(later[:, 3:], start[:, 3:], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("width", "heads"), [(8, 3), (6, 2), (8, 8)])
def test_heads_must_divide_the_width_into_even_parts(width: int, heads: int) -> None:
    message = rf"^attention.heads is {heads}; it must divide width {width} into heads of even width$"
    with pytest.raises(UserError, match=message):
        Attention(width, AttentionConfig(heads=heads))


def test_no_gradient_crosses_to_a_detached_state() -> None:
    module, x = build(), draw(1, 4).requires_grad_()
    _, state = module(x)
    y, _ = module(draw(1, 2), state.detach())
    assert torch.autograd.grad(y.sum(), x, allow_unused=True) == (None,)
