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
    "next token, rate zero": {"periods": [4], "theta_max": 0.0, "loss": "next_token"},
    "next token, dealt to three, rate zero": {"periods": [4, 8, None], "theta_max": 0.0, "loss": "next_token"},
    "next token, none that updates": {"periods": [None], "loss": "next_token"},
    "next token, switched off": {"periods": [4, 8], "learn": [False, False], "loss": "next_token"},
}
LEARNING: dict[str, dict[str, Any]] = {
    "in a chain": {"variant": "sequential"},
    "side by side": {"variant": "independent"},
    "by next token": {"loss": "next_token"},
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


@pytest.mark.parametrize("way", LEARNING.values(), ids=LEARNING)
def test_with_a_rate_it_is_the_transformer_until_the_first_period_ends(way: dict[str, Any]) -> None:
    model, x = trained(), tokens()
    converted = with_continuum_memory(model, [4, 8, None], **way)
    with torch.no_grad():
        difference = (converted(x)[0] - model(x)[0]).abs().amax((0, 2))
    assert difference[:4].max() < 1e-12
    assert difference[4:].min() > 1e-9
    frozen, _ = converted(x, memory="frozen")
    torch.testing.assert_close(frozen, model(x)[0], atol=1e-12, rtol=0)


def test_with_next_token_loss_there_is_no_new_parameter_and_a_text_read_again_is_predicted_better() -> None:
    model, x = trained(), tokens(8).repeat(1, 4)
    converted = with_continuum_memory(model, [4, 8], loss="next_token", theta_max=0.3)
    assert set(converted.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        logits, _ = converted(x)
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), x[:, 1:], reduction="none")
    readings = losses[:, :24].unflatten(1, (3, 8)).mean((0, 2))
    assert readings[0] > readings[1] > readings[2]


def test_a_trained_level_can_be_switched_off_and_on() -> None:
    first, second = (
        with_continuum_memory(trained(), [4, 8], loss="next_token", learn=learn)
        for learn in ([True, False], [False, True])
    )
    with torch.no_grad():
        for model, moved in ((first, [True, False]), (second, [False, True])):
            _, state = model(tokens(17))
            pairs = zip(state.fast.weights, model.init_state(2).fast.weights, strict=True)
            assert [bool(a) and not torch.equal(a[0], b[0]) for a, b in pairs] == moved


@pytest.mark.parametrize("way", LEARNING.values(), ids=LEARNING)
def test_it_is_saved_and_loaded_and_its_state_with_it(way: dict[str, Any], tmp_path: Path) -> None:
    converted = with_continuum_memory(trained(), [4, 8, None], **way)
    nm.save(tmp_path / "run", converted, nm.ByteTokenizer())
    loaded, _ = nm.load(tmp_path / "run")
    assert loaded.config == converted.config
    x = tokens()
    with torch.no_grad():
        _, state = converted(x[:, :10])
        state.save(tmp_path / "state.safetensors")
        y, _ = loaded(x[:, 10:], nm.State.load(tmp_path / "state.safetensors", loaded))
        torch.testing.assert_close(y, converted(x)[0][:, 10:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", LEARNING.values(), ids=LEARNING)
def test_every_new_parameter_is_trained_on(way: dict[str, Any]) -> None:
    converted = with_continuum_memory(trained(tie_embeddings=True), [4, 8, None], **way)
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
        (["transformer"], {"periods": []}, "periods is ..; it must name at least one level"),
        (["transformer"], {"periods": [4], "variant": "nest"}, "memory.continuum.variant is 'nest'"),
        (
            ["transformer"],
            {"periods": [4], "loss": "next"},
            "loss is 'next'; it must be one of reconstruction, next_token",
        ),
        (["transformer"], {"periods": [6], "loss": "next_token"}, "attention.window is 5; it must be at least"),
        (["transformer"], {"periods": [4, 6], "loss": "next_token"}, "end_to_end.periods is .4, 6.; it must begin"),
        (
            ["transformer"],
            {"periods": [4], "loss": "next_token", "variant": "nested"},
            "variant is 'nested'; with loss",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused(pattern: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(nm.UserError, match=message):
        with_continuum_memory(nm.CausalLM(replace(CONFIG, pattern=pattern)), **options)


def test_what_learns_already_is_refused() -> None:
    learner = with_continuum_memory(trained(), [4], loss="next_token")
    with pytest.raises(nm.UserError, match="model is of kind 'ttt_e2e'; only 'causal_lm' can be converted"):
        with_continuum_memory(learner, [4])
