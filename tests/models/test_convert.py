"""A Transformer with its feed-forwards turned into continuum memories: the same model until something is learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neuralmem as nm
from neuralmem.models.convert import with_continuum_memory

CONFIG = nm.ModelConfig(
    vocab_size=17,
    width=8,
    depth=2,
    pattern=["transformer"],
    attention=nm.AttentionConfig(heads=2, window=5, persistent_tokens=2),
    feed_forward=2.5,
)
WAYS: dict[str, dict[str, Any]] = {
    "one that never updates": {"periods": [None]},
    "rate zero": {"periods": [4], "theta_max": 0.0},
    "three in a chain, rate zero": {"periods": [4, 12, None], "theta_max": 0.0},
    "three side by side, rate zero": {"periods": [4, 8, None], "theta_max": 0.0, "variant": "independent"},
    "switched off": {"periods": [4, 8], "learn": [False, False]},
    "nested, rate zero": {"periods": [4], "theta_max": 0.0, "variant": "nested"},
}


def trained(**changes: Any) -> nm.CausalLM:
    torch.manual_seed(3)
    model = nm.CausalLM(replace(CONFIG, **changes)).double()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.2 * torch.randn_like(x))
    return model


def tokens(count: int = 23) -> Tensor:
    return torch.randint(17, (2, count), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("cuts", [[23], [1] * 23, [3, 10, 1, 9]], ids=["whole", "token by token", "cut"])
def test_what_learns_nothing_is_the_transformer(way: dict[str, Any], cuts: list[int]) -> None:
    model, x = trained(), tokens()
    converted = with_continuum_memory(model, **way)
    ours, theirs = None, None
    with torch.no_grad():
        for part in x.split(cuts, dim=1):
            y, ours = converted(part, ours)
            z, theirs = model(part, theirs)
            torch.testing.assert_close(y, z, atol=1e-12, rtol=0)


def test_a_level_that_never_updates_is_the_feed_forward_bit_for_bit_and_has_no_state() -> None:
    model = trained()
    converted = with_continuum_memory(model, [None])
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    for old, new in zip(model.layers, converted.layers, strict=True):
        y, state = new.feed_forward(x)
        assert torch.equal(y, old.feed_forward(old.feed_forward_norm(x)))
        assert state.nbytes == 2 * 8  # `filled`, one integer per sample
    assert not converted.has_memory
    assert sum(p.numel() for p in converted.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("variant", ["sequential", "independent"])
def test_with_a_rate_it_is_the_transformer_until_the_first_period_ends(variant: str) -> None:
    model, x = trained(), tokens()
    converted = with_continuum_memory(model, [4, 8, None], variant=variant)
    with torch.no_grad():
        difference = (converted(x)[0] - model(x)[0]).abs().amax((0, 2))
    assert difference[:4].max() < 1e-12
    assert difference[4:].min() > 1e-9
    frozen, _ = converted(x, memory="frozen")
    torch.testing.assert_close(frozen, model(x)[0], atol=1e-12, rtol=0)


def test_it_is_saved_and_loaded_and_its_state_with_it(tmp_path: Path) -> None:
    converted = with_continuum_memory(trained(), [4, 8, None])
    nm.save(tmp_path / "run", converted, nm.ByteTokenizer())
    loaded, _ = nm.load(tmp_path / "run")
    assert loaded.config == converted.config
    x = tokens()
    with torch.no_grad():
        _, state = converted(x[:, :10])
        state.save(tmp_path / "state.safetensors")
        y, _ = loaded(x[:, 10:], nm.State.load(tmp_path / "state.safetensors", loaded))
        torch.testing.assert_close(y, converted(x)[0][:, 10:], atol=1e-12, rtol=0)


def test_every_new_parameter_is_trained_on() -> None:
    converted = with_continuum_memory(trained(tie_embeddings=True), [4, 8, None])
    assert converted.head.weight is converted.embedding.weight
    y, _ = converted(tokens())
    y.square().mean().backward()
    for name, x in converted.named_parameters():
        assert x.grad is not None, name
        assert x.grad.isfinite().all(), name
        assert x.grad.any(), name  # of an added level too: what is written makes its way out other than zero


def test_the_model_that_was_given_does_not_change() -> None:
    model = trained()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    converted = with_continuum_memory(model, [4, None])
    with torch.no_grad():
        for x in converted.parameters():
            x.add_(1)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        (["titans_mag"], {"periods": [4]}, "model.pattern has titans_mag; only transformer layers"),
        (["transformer"], {"periods": [4, None], "variant": "nested"}, "variant is 'nested'; its levels share"),
        (["transformer"], {"periods": [4, 6]}, "memory.continuum.periods is .4, 6.; every period must be"),
        (["transformer"], {"periods": [4], "variant": "nest"}, "memory.continuum.variant is 'nest'"),
    ],
)
def test_what_cannot_be_converted_is_refused(pattern: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(nm.UserError, match=message):
        with_continuum_memory(nm.CausalLM(replace(CONFIG, pattern=pattern)), **options)
