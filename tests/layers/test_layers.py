"""What the layers are made of, beyond the laws: who sees whom in MAC, what gates what, where residuals go."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from neuralmem import registry
from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.layers._layer import Gate, Layer
from neuralmem.modules.stream import Rows

CONFIG = ModelConfig(
    vocab_size=5,
    width=8,
    depth=1,
    attention=AttentionConfig(heads=2, window=4, persistent_tokens=2, segment=6),
    memory=MemoryConfig(heads=2, chunk_size=4),
)


def build(name: str, **changes: object) -> Layer:
    return registry.find("layer", name, Layer, "model.pattern")(replace(CONFIG, **changes)).double()


def draw(tokens: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, 8, dtype=torch.float64)


@pytest.mark.parametrize("name", [n for n in registry.names("layer") if not n.startswith("hope")])  # test_hope.py
def test_a_mixer_and_a_feed_forward_each_add_to_the_residual_stream(name: str) -> None:
    layer, x = build(name), draw(9)
    y, _ = layer(x)
    mixed, _ = layer.mix(x, None, Rows(), "on")
    torch.testing.assert_close(y, x + mixed + layer.feed_forward(layer.feed_forward_norm(x + mixed)))


def test_the_gate_is_the_normalised_attention_times_a_sigmoid_of_the_normalised_memory() -> None:
    gate, y, m = Gate(CONFIG).double(), draw(3), draw(3)
    rms = lambda x: x / (x.square().mean(-1, keepdim=True) + CONFIG.norm_eps).sqrt()
    torch.testing.assert_close(gate(y, m), rms(y) * rms(m).sigmoid())


@pytest.mark.parametrize("name", ["titans_mag", "titans_mal"])
def test_without_memory_a_hybrid_still_attends(name: str) -> None:
    layer, x = build(name), draw(9)
    changed = x.clone()
    changed[:, 5] += 1
    y, z = layer(x, memory="off")[0], layer(changed, memory="off")[0]
    assert (y[:, 6:9] - z[:, 6:9]).abs().max() > 1e-6


def test_mac_reads_the_memory_as_it_was_before_the_segment() -> None:
    """The anchor changes with a segment, not within; the unfinished chunk at its end is closed."""
    layer = build("titans_mac")
    x = draw(12)
    _, state = layer(x[:, :6])
    for a, b in zip(state.anchor, state.memory.weights, strict=True):
        torch.testing.assert_close(a, b)
    assert state.filled.tolist() == [0, 0]
    assert state.memory.filled.tolist() == [0, 0]  # six tokens are a chunk and a half; the segment's end closed it
    _, later = layer(x[:, 6:11], state)
    for a, b in zip(later.anchor, state.anchor, strict=True):
        torch.testing.assert_close(a, b)
    assert later.memory.filled.tolist() == [1, 1]


def test_the_chunk_grid_restarts_at_every_segment_of_mac() -> None:
    """Segments of 6 with chunks of 4: tokens 6 and 7 are anchored at the segment's start, not at token 4's."""
    layer, x = build("titans_mac"), draw(12)
    whole, state = layer(x)
    _, first = layer(x[:, :6])
    second, after = layer(x[:, 6:], first)
    torch.testing.assert_close(second, whole[:, 6:])
    for (name, a), (_, b) in zip(after.items(), state.items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("tokens", [6, 12, 15])
def test_mac_goes_on_from_a_segments_end_as_on_the_grid(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of calls of whole segments: outputs, state and gradients are those of rows that differ."""
    layer, x, more = build("titans_mac"), draw(12), draw(tokens).requires_grad_()
    _, state = layer.mix(x, None, Rows(), "on")
    there = torch.ones(2, tokens, dtype=torch.bool)
    slow, after_slow = layer.mix(more, state, Rows(mask=there), "on")
    monkeypatch.setattr(layer, "_on_grid", None)  # not asked
    fast, after = layer.mix(more, state, Rows(), "on")
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(dict(after.items()), dict(after_slow.items()))
    into = [more, *layer.parameters()]
    grad, wanted = (
        torch.autograd.grad(y.square().sum(), into, allow_unused=True, retain_graph=True) for y in (fast, slow)
    )
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("quiet", ["frozen", "off"])
@pytest.mark.parametrize("written", [0, 3, 4, 5])  # chunks of 4: unfinished, whole, and one more
def test_mac_goes_on_from_a_segment_that_ended_quiet(written: int, quiet: str) -> None:
    """What such a segment wrote first may be unfinished, or in the weights and not in those that recall."""
    layer, x, more = build("titans_mac"), draw(6), draw(12)
    _, state = layer.mix(x[:, :written], None, Rows(), "on")
    _, state = layer.mix(x[:, written:], state, Rows(), quiet)
    there = torch.ones(2, 12, dtype=torch.bool)
    wanted, after_wanted = layer.mix(more, state, Rows(mask=there), "on")
    y, after = layer.mix(more, state, Rows(), "on")
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(dict(after.items()), dict(after_wanted.items()))


def test_mac_attention_does_not_cross_segments() -> None:
    layer, x = build("titans_mac", memory=replace(CONFIG.memory, convolution=1)), draw(12)
    changed = x.clone()
    changed[:, :6] += 1
    y, z = layer(x, memory="off")[0], layer(changed, memory="off")[0]
    torch.testing.assert_close(y[:, 6:], z[:, 6:], atol=0, rtol=0)
    assert (layer(x)[0][:, 6:] - layer(changed)[0][:, 6:]).abs().max() > 1e-6


@pytest.mark.parametrize("name", registry.names("layer"))
@pytest.mark.parametrize("count", [0, 3])
def test_persistent_tokens_are_parameters_of_attention_and_of_no_state(name: str, count: int) -> None:
    layer = build(name, attention=replace(CONFIG.attention, persistent_tokens=count))
    found = [p for path, p in layer.named_parameters() if "persistent" in path]
    assert all(p.shape[0] == count for p in found)
    assert bool(found) == (count > 0 and name not in ("titans_lmm", "hope"))
    size = layer.init_state(1).nbytes
    assert size == build(name).init_state(1).nbytes


@pytest.mark.parametrize("name", [n for n in registry.names("layer") if n not in ("titans_lmm", "hope")])
def test_heads_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^attention.heads is 3; it must divide width 8"):
        build(name, attention=replace(CONFIG.attention, heads=3))


def test_any_layer_takes_any_rule() -> None:
    for name in registry.names("layer"):
        for rule in registry.names("rule"):
            y, _ = build(name, memory=replace(CONFIG.memory, rule=rule))(draw(7))
            assert y.shape == (2, 7, 8)


def test_an_unknown_rule_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^memory.rule is 'titan'; it must be one of .*; did you mean 'titans'\?$"):
        build("titans_mag", memory=replace(CONFIG.memory, rule="titan"))
