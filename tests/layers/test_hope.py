"""HOPE's layers: what stands where, which memory it is, and what remains without it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from neuralmem import registry
from neuralmem.config import AttentionConfig, ContinuumConfig, MemoryConfig, ModelConfig
from neuralmem.layers._continuum import ContinuumLayer
from neuralmem.layers._layer import Layer
from neuralmem.layers.hope import Hope
from neuralmem.layers.hope_attention import HopeAttention
from neuralmem.layers.transformer import Transformer
from neuralmem.memory._memory import Memory
from neuralmem.modules.attention import Attention
from neuralmem.modules.stream import Rows

CONFIG = ModelConfig(
    vocab_size=5,
    width=8,
    depth=1,
    attention=AttentionConfig(heads=2, window=4, persistent_tokens=2),
    memory=MemoryConfig(heads=2, chunk_size=4),
)
LAYERS = pytest.mark.parametrize("name", ["hope", "hope_attention"])


def build(name: str, **continuum: object) -> Layer:
    torch.manual_seed(0)
    memory = replace(CONFIG.memory, continuum=ContinuumConfig(**continuum))
    return registry.find("layer", name, Layer, "model.pattern")(replace(CONFIG, memory=memory)).double()


def draw(tokens: int) -> Tensor:
    return torch.randn(2, tokens, 8, dtype=torch.float64)


@LAYERS
def test_a_mixer_and_the_levels_each_add_to_the_residual_stream(name: str) -> None:
    layer, x = build(name), draw(9)
    assert isinstance(layer, ContinuumLayer)
    y, state = layer(x)
    mixed, mixer = layer.mix(x, None, Rows(), "on")
    added, levels = layer.feed_forward(x + mixed)
    torch.testing.assert_close(y, x + mixed + added)
    for one, other in zip((state.mixer, state.feed_forward), (mixer, levels), strict=True):
        for (_, a), (_, b) in zip(one.items(), other.items(), strict=True):
            torch.testing.assert_close(a, b)


def test_hope_is_self_modifying_titans_whatever_the_rule_is_called() -> None:
    layer = Hope(replace(CONFIG, memory=replace(CONFIG.memory, rule="delta")))
    assert type(layer.memory) is registry.find("rule", "self_modifying", Memory, "memory.rule")
    assert not any(isinstance(part, Attention) for part in layer.modules())


@LAYERS
def test_off_leaves_the_residual_stream_and_attention(name: str) -> None:
    layer, x = build(name), draw(9)
    y, _ = layer(x, memory="off")
    expected = x + layer.attention(layer.norm(x))[0] if isinstance(layer, HopeAttention) else x
    torch.testing.assert_close(y, expected)


def test_without_a_level_that_learns_it_is_the_transformer_layer() -> None:
    plain, layer = Transformer(CONFIG).double(), build("hope_attention", periods=[None])
    assert not layer.has_memory
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        layer.attention.load_state_dict(plain.attention.state_dict())
        levels = layer.feed_forward.levels
        levels.up[0][0], levels.down[0][0] = plain.feed_forward.up.weight, plain.feed_forward.down.weight
    x = draw(11)
    y, state = layer(x[:, :4])
    z, _ = layer(x[:, 4:], state, memory="off")  # nothing here is memory
    assert torch.equal(torch.cat([y, z], 1)[:, :4], plain(x[:, :4])[0])
    torch.testing.assert_close(torch.cat([y, z], 1), plain(x)[0], atol=1e-12, rtol=0)


@LAYERS
@pytest.mark.parametrize("variant", ["sequential", "nested", "independent"])
def test_all_levels_together_have_the_parameters_of_one_feed_forward(name: str, variant: str) -> None:
    plain = Transformer(replace(CONFIG, feed_forward=3.0)).feed_forward
    memory = replace(CONFIG.memory, continuum=ContinuumConfig(periods=[4, 8, None], variant=variant))
    layer = registry.find("layer", name, Layer, "x")(replace(CONFIG, feed_forward=3.0, memory=memory))
    levels = layer.feed_forward.levels
    given = sum(p.numel() for p in (*levels.up, *levels.down))
    assert given == sum(p.numel() for p in plain.parameters())


@LAYERS
def test_the_grid_is_the_fastest_period_that_learns(name: str) -> None:
    assert build(name).feed_forward.config.chunk_size == 4
    assert build(name, periods=[6, 12, None]).feed_forward.config.chunk_size == 6
    assert build(name, periods=[6, 12], learn=[False, True]).feed_forward.config.chunk_size == 12
