"""TTT-E2E where every model is used: files, training by name, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neuralmem as nm
from neuralmem.data.batch import Batch
from neuralmem.models.causal_lm import build_model
from neuralmem.models.ttt_e2e import EndToEnd
from neuralmem.training.module import LanguageModel
from tests.conformance.subjects import assert_identical
from tests.models.ttt_e2e_cases import CONFIG, build, text


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_saved_and_loaded_like_every_model(tmp_path: Path, tied: bool) -> None:
    model = build_model(replace(CONFIG, tie_embeddings=tied))
    nm.save(tmp_path / "run", model, nm.ByteTokenizer())
    again, _ = nm.load(tmp_path / "run")
    assert type(again) is EndToEnd
    assert again.config == model.config
    with torch.no_grad():
        logits, state = model(text())
        assert torch.equal(again(text())[0], logits)
        state.save(tmp_path / "read.safetensors")
        assert_identical(nm.State.load(tmp_path / "read.safetensors", again), state)


def test_training_takes_it_by_its_name() -> None:
    module = LanguageModel(vocab_size=11, model="ttt_e2e", pattern=["transformer"], width=8, depth=4)
    assert type(module.model) is EndToEnd


def test_first_weights_have_a_gradient_where_carried_ones_replace_them_on_two_devices() -> None:
    module = LanguageModel(vocab_size=11, model="ttt_e2e", pattern=["transformer"], width=8, depth=4)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    lacking = []
    for devices in (1, 2):
        module.trainer = SimpleNamespace(datamodule=SimpleNamespace(carry_memory=True), world_size=devices)
        module.zero_grad()
        for _ in range(2):  # the second goes on from the first
            loss = module.training_step(Batch(text(), text(), None, None, None, None, None), 0)["loss"]
        loss.backward()
        lacking.append({name for name, p in module.named_parameters() if p.grad is None})
        module.carried = None
    assert lacking == [{"model.prime.0.0.up.weight", "model.prime.0.0.down.weight"}, set()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pattern": ["titans_mag"]},
            "model.pattern is 'titans_mag'; for model 'ttt_e2e' it must be one of transformer",
        ),
        ({"window": None}, "attention.window is None; it must be at least end_to_end.mini_batch = 4"),
        ({"window": 3}, "attention.window is 3; it must be at least end_to_end.mini_batch = 4"),
        ({"mini_batch": 0}, "end_to_end.mini_batch is 0; it must be positive"),
        ({"theta": -1.0}, "end_to_end.theta is -1.0; it must not be negative"),
        ({"clip": 0.0}, "end_to_end.clip is 0.0; it must be positive"),
        ({"periods": []}, "end_to_end.periods is []; it must begin with mini_batch = 4"),
        ({"periods": [8]}, "end_to_end.periods is [8]; it must begin with mini_batch = 4"),
        ({"periods": [4, 6]}, "end_to_end.periods is [4, 6]; it must begin with mini_batch = 4"),
        ({"periods": [4, 4]}, "end_to_end.periods is [4, 4]; it must begin with mini_batch = 4"),
        ({"periods": [4, None, 8]}, "end_to_end.periods is [4, None, 8]; it must begin with mini_batch = 4"),
        ({"model": "ttt_e3e"}, "model.model is 'ttt_e3e'; it must be one of causal_lm, ttt_e2e; did you mean"),
        ({"model": "checkpoint"}, "model.model is 'checkpoint'; it must be one of causal_lm, ttt_e2e"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    own = {name: options.pop(name) for name in list(options) if hasattr(CONFIG.end_to_end, name)}
    window = {"window": options.pop("window")} if "window" in options else {}

    def attempt() -> None:
        end_to_end = replace(CONFIG.end_to_end, **own)
        attention = replace(CONFIG.attention, **window)
        build_model(replace(CONFIG, attention=attention, end_to_end=end_to_end, **options))

    with pytest.raises(nm.UserError) as error:
        attempt()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cls", "other"), [(EndToEnd, "causal_lm"), (nm.CausalLM, "ttt_e2e")])
def test_a_class_takes_only_configs_of_its_kind(cls: type, other: str) -> None:
    with pytest.raises(nm.UserError, match=rf"^model.model is '{other}'"):
        cls(replace(CONFIG, model=other))


def test_the_state_of_another_kind_of_model_is_refused() -> None:
    other = nm.CausalLM(replace(CONFIG, model="causal_lm"))
    _, state = other(text())
    with pytest.raises(nm.UserError, match=r"^state is of another model: tensor 'fast\.updates' is missing"):
        build(torch.float32)(text(), state)
