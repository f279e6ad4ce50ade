"""Which parameters decay, which optimizer has them, and how the learning rate moves."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from neuralmem import registry
from neuralmem.config import ContinuumConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.causal_lm import CausalLM
from neuralmem.training.cli import main
from neuralmem.training.logs import read_metrics
from neuralmem.training.module import LanguageModel
from neuralmem.training.optim import (
    LearningRate,
    Name,
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    parameter_groups,
)

NAMES = get_args(Name)
OTHERS = [name for name in NAMES if name != "adamw"]


def tiny() -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(ModelConfig(17, width=16, depth=1))


def read(model: CausalLM, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Steps on one text. -> the loss of each"""
    text, losses = torch.arange(33)[None] % 17, []
    for _ in range(steps):
        optimizer.zero_grad()
        logits, _ = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0], text[0, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rule", ["titans", "delta"])
def test_only_matrices_of_feature_maps_decay(tied: bool, rule: str) -> None:
    config = ModelConfig(17, width=16, depth=1, memory=MemoryConfig(rule=rule), tie_embeddings=tied)
    model = CausalLM(config)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1))
    decayed, others = (
        {names[id(p)] for g in groups if bool(g["weight_decay"]) == decays for p in g["params"]}
        for decays in (True, False)
    )
    assert decayed | others == set(names.values())
    assert not decayed & others
    assert all(name.endswith(".weight") for name in decayed)
    assert {"layers.0.feed_forward.up.weight", "layers.0.attention.query.weight"} <= decayed
    assert ("head.weight" in decayed) == (not tied)
    kept = ("gate", "norm", "embedding", "memory.weights", "memory.weight", "persistent", "convolutions", "bias")
    assert not [name for name in decayed if any(word in name for word in kept)]


def test_the_gates_of_a_memory_learn_at_their_own_rate() -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(lr=1e-3, gate_lr=3.0))
    faster = {names[id(p)] for group in groups if group["lr"] == 3e-3 for p in group["params"]}
    assert faster == {"layers.0.memory.gate_map.weight", "layers.0.memory.gate_map.bias"}
    assert {group["lr"] for group in groups} == {1e-3, 3e-3}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_other_optimizers_have_the_matrices_of_feature_maps(name: str, tied: bool) -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1, tie_embeddings=tied))
    names = {id(p): path for path, p in model.named_parameters()}
    config = OptimizerConfig(name=name)
    groups = parameter_groups(model, config)
    found = {names[id(p)] for group in groups if group["algorithm"] == name for p in group["params"]}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert found == decayed - {"head.weight"}
    assert {"layers.0.feed_forward.up.weight", "layers.0.memory.output.weight"} <= found
    assert sum(len(group["params"]) for group in groups) == len(names)
    kept = {group["weight_decay"] for group in make_optimizer(model, config).param_groups}
    assert kept == {0.0, config.weight_decay}


CHOSEN = {
    "adamw": {"betas": (0.5, 0.6), "eps": 1e-3},
    "muon": {"momentum": 0.7},
    "m3": {"momentum": 0.7, "slow_momentum": 0.6, "slow_every": 4, "slow_weight": 2.0, "eps": 1e-3},
    "delta_momentum": {"momentum": 0.7, "delta": 0.3, "eps": 1e-3},
    "deep_momentum": {"momentum": 0.7, "momentum_width": 5, "eps": 1e-3},
}

KEPT = {"deep_momentum": {"momentum_width": 16}}  # what a state has the shape of


@pytest.mark.parametrize("name", NAMES)
def test_every_field_reaches_the_optimizer(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.5, weight_decay=0.2, **{"betas": (0.9, 0.6), **CHOSEN[name]})
    optimizer = make_optimizer(tiny(), config)
    group = next(g for g in optimizer.param_groups if g["algorithm"] == name and g["weight_decay"])
    expected = {field.removeprefix("momentum_"): value for field, value in CHOSEN[name].items()}
    expected |= {"square_decay": 0.6} if name in ("delta_momentum", "deep_momentum") else {}
    expected |= {"adjust_lr_fn": "match_rms_adamw", "nesterov": True} if name == "muon" else {}
    assert expected.items() <= group.items()
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.2)


def test_adamw_is_torchs_over_two_groups() -> None:
    ours, theirs = tiny(), tiny()
    optimizer = make_optimizer(ours, OptimizerConfig(lr=1e-2))
    assert type(optimizer) is torch.optim.AdamW
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    groups = [
        {"params": [b for a, b in pairs if (id(a) in decayed) == decays], "weight_decay": 0.1 * decays}
        for decays in (False, True)
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    assert read(ours, optimizer, 4) == read(theirs, reference, 4)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_counts_as_a_change_of_the_weights(name: str) -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1))
    optimizer = make_optimizer(model, OptimizerConfig(name=name))
    versions = [p._version for p in model.parameters()]
    logits, state = model(torch.arange(8)[None])
    logits.sum().backward()
    optimizer.step()
    with pytest.raises(UserError, match="earlier weights"):
        state.identity()
    assert all(p._version > before for p, before in zip(model.parameters(), versions, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_moves(name: str) -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1))
    optimizer = make_optimizer(model, OptimizerConfig(name=name))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_in_mixed_precision_with_clipped_gradients(name: str, tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "configs" / "tiny" / "mag.yaml"
    options = {"trainer.precision": "bf16-mixed", "trainer.gradient_clip_val": "1.0", "trainer.max_steps": "2"}
    options["report.at_end"] = "false"
    arguments = [x for key, value in options.items() for x in (f"--{key}", value)]
    assert main(["--config", str(config), "--run", str(tmp_path), "--optimizer.name", name, *arguments]) == 0
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", False), ("16-mixed", False)])
def test_only_full_precision_is_fused(precision: str, fused: bool) -> None:
    """What Lightning asks before it clips is whether the step unscales gradients on its own, as a fused one does."""
    module = LanguageModel(vocab_size=17, width=16, depth=1)
    module.trainer = SimpleNamespace(precision=precision, callbacks=[], max_steps=10)
    optimizer = module.configure_optimizers()["optimizer"]
    assert optimizer.defaults["fused"] is fused
    assert getattr(optimizer, "_step_supports_amp_scaling", False) is fused


@pytest.mark.parametrize("rule", registry.names("rule"))
def test_the_gates_of_every_rule_have_a_learning_rate_of_their_own(rule: str) -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1, pattern=["titans_lmm"], memory=MemoryConfig(rule=rule)))
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, gate_lr=3.0))
    assert {group["lr"] for group in groups} == {1.0, 3.0}
    assert all(group["weight_decay"] == 0 for group in groups if group["lr"] == 3.0)


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_leave_unscaling_to_lightning(name: str) -> None:
    optimizer = make_optimizer(tiny(), OptimizerConfig(name=name))
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_learned(name: str) -> None:
    model = tiny()
    losses = read(model, make_optimizer(model, OptimizerConfig(name=name, lr=1e-2)), 30)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_a_saved_state_is_exact(name: str, tmp_path: Path) -> None:
    config = OptimizerConfig(name=name, lr=1e-2, slow_every=3)
    whole, half = tiny(), tiny()
    optimizer = make_optimizer(whole, config)
    read(whole, optimizer, 4)  # between two updates of m3's slow momentum
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "file")
    losses = read(whole, optimizer, 4)
    weights, state = torch.load(tmp_path / "file", weights_only=True)
    half.load_state_dict(weights)
    resumed = make_optimizer(half, config)
    resumed.load_state_dict(state)
    assert read(half, resumed, 4) == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_does_not_bring_its_settings(name: str) -> None:
    """torch takes learning rate, decay and all the rest from the state, so that new settings would do nothing."""
    model = tiny()
    optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=1e-2, gate_lr=2.0))
    schedule = LearningRate(optimizer, lambda step: 1 / (step + 1))
    for _ in range(3):
        read(model, optimizer, 1)
        schedule.step()
    after = OptimizerConfig(name=name, lr=1e-3, gate_lr=1.0, weight_decay=0.0, **CHOSEN[name] | KEPT.get(name, {}))
    resumed, expected = make_optimizer(tiny(), after), make_optimizer(tiny(), after)
    again = LearningRate(resumed, lambda step: 1 / (step + 1))
    resumed.load_state_dict(optimizer.state_dict())
    again.load_state_dict(schedule.state_dict())
    LearningRate(expected, lambda step: 1 / (step + 1))
    for mine, wanted in zip(resumed.param_groups, expected.param_groups, strict=True):
        named = {"params", "lr"}
        assert {k: v for k, v in mine.items() if k not in named} == {k: v for k, v in wanted.items() if k not in named}
        assert mine["lr"] == pytest.approx(1e-3 / 4)
    saved, loaded = (one.state_dict()["state"] for one in (optimizer, resumed))
    assert saved.keys() == loaded.keys() != set()
    for number, state in saved.items():
        assert all(torch.equal(x, loaded[number][key]) for key, x in state.items() if isinstance(x, torch.Tensor))
    assert (again.last_epoch, again.base_lrs) == (3, [1e-3] * len(again.base_lrs))
    again.step()
    assert again.get_last_lr() == pytest.approx([1e-3 / 5] * len(again.base_lrs))


def test_a_state_is_placed_by_this_runs_settings_and_not_by_its_own() -> None:
    """Fused AdamW keeps its step counts where its parameters are, the plain one on the CPU."""
    model = tiny()
    optimizer = make_optimizer(model, OptimizerConfig(), fused=False)
    read(model, optimizer, 1)
    seen = []
    resumed = make_optimizer(tiny(), OptimizerConfig(), fused=True)
    resumed.register_load_state_dict_pre_hook(lambda _, state: seen.extend(g["fused"] for g in state["param_groups"]))
    resumed.load_state_dict(optimizer.state_dict())
    assert seen == [True] * len(resumed.param_groups)


def test_a_state_of_an_earlier_grouping_is_refused() -> None:
    """Gates were once in the group of all that does not decay, where their rate was that of the others."""
    optimizer = make_optimizer(tiny(), OptimizerConfig())
    state = optimizer.state_dict()
    merged = [g for g in state["param_groups"] if not g["weight_decay"]]
    others = [g for g in state["param_groups"] if g["weight_decay"]]
    assert len(merged) == 2
    whole = merged[0] | {"params": [p for g in merged for p in g["params"]]}
    with pytest.raises(UserError, match=r"groups of \[.*\] parameters, where this version makes .*--init_from FOLDER"):
        optimizer.load_state_dict({"state": {}, "param_groups": [whole, *others]})


def test_a_momentum_of_another_width_is_refused() -> None:
    state = make_optimizer(tiny(), OptimizerConfig(name="deep_momentum", momentum_width=4)).state_dict()
    with pytest.raises(UserError, match=r"optimizer\.momentum_width is 16, but the checkpoint is of 4"):
        make_optimizer(tiny(), OptimizerConfig(name="deep_momentum")).load_state_dict(state)


@pytest.mark.parametrize("name", OTHERS)
def test_a_resumed_run_is_the_uninterrupted_one(train: Callable[..., Path], name: str) -> None:
    whole = train(name, "whole")
    half = train(name, "half", "--ckpt_path", str(whole / "checkpoints" / "step=5"))
    losses = [row["loss"] for row in read_metrics(whole / "metrics.csv")]
    assert [row["loss"] for row in read_metrics(half / "metrics.csv")] == losses[5:]
    assert (half / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("mine", "theirs"), [("adamw", "muon"), ("m3", "adamw"), ("m3", "muon")])
def test_a_state_of_another_optimizer_is_refused(mine: str, theirs: str) -> None:
    state = make_optimizer(tiny(), OptimizerConfig(name=theirs)).state_dict()
    with pytest.raises(UserError, match=rf"optimizer\.name is '{mine}', but the checkpoint is of '{theirs}'"):
        make_optimizer(tiny(), OptimizerConfig(name=mine)).load_state_dict(state)


def test_a_checkpoint_of_another_optimizer_is_one_line(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = train("muon", "a", "--trainer.max_steps", "5") / "checkpoints" / "step=5"
    capsys.readouterr()
    options = ["--run", "b", "--optimizer.name", "adamw", "--ckpt_path", str(file)]
    assert main(["--config", str(tmp_path / "a" / "config.yaml"), *options]) == 2
    assert capsys.readouterr().err.endswith(
        "error: optimizer.name is 'adamw', but the checkpoint is of 'muon'; it must be the same\n"
    )


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_schedules(schedule: str, half: float) -> None:
    share = learning_rate(OptimizerConfig(warmup=10, schedule=schedule, final=0.1), lambda step: step / 100)
    assert share(0) == pytest.approx(0.1)
    assert share(4) == pytest.approx(0.5, rel=0.05)
    assert share(50) == pytest.approx(half)
    assert share(100) == share(1000) == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert all(math.isfinite(share(step)) for step in range(200))


WRONG = [{"lr": 0.0}, {"eps": -1.0}, {"weight_decay": -0.1}, {"warmup": -1}, {"gate_lr": 0.0}, {"betas": (0.9, 1.0)}]
WRONG += [{"momentum": 1.0}, {"slow_momentum": -0.1}, {"slow_every": 0}, {"slow_weight": -1.0}, {"delta": 1.5}]
WRONG += [{"momentum_width": -1}, {"write_floor": 0.0}, {"write_floor": math.inf}, {"write_floor": 0.1}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_named(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"optimizer.{next(iter(wrong))} is"):
        OptimizerConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [({"name": "muno"}, "muon"), ({"name": "delta-momentum"}, "delta_momentum"), ({"schedule": "cosin"}, "cosine")],
)
def test_a_wrong_name_is_told_the_nearest(wrong: dict, near: str) -> None:
    with pytest.raises(UserError, match=f"it must be one of .*; did you mean '{near}'"):
        OptimizerConfig(**wrong)


def test_a_wrong_name_at_the_command_line_is_one_line(capsys: pytest.CaptureFixture) -> None:
    config = Path(__file__).parents[2] / "configs" / "tiny" / "muon.yaml"
    assert main(["--config", str(config), "--optimizer.name", "muno"]) == 2
    names = ", ".join(NAMES)
    assert capsys.readouterr().err == (
        f"error: optimizer.name is 'muno'; it must be one of {names}; did you mean 'muon'?\n"
    )


def test_levels_that_never_learn_decay_like_the_feed_forwards_that_they_are() -> None:
    memory = MemoryConfig(continuum=ContinuumConfig(periods=[4, None]))
    model = CausalLM(ModelConfig(vocab_size=11, width=8, depth=1, pattern=["hope_attention"], memory=memory))
    groups = parameter_groups(model, OptimizerConfig(name="muon", weight_decay=0.1))
    found = {id(p): (group["weight_decay"], group["algorithm"]) for group in groups for p in group["params"]}
    levels = model.layers[0].feed_forward.levels
    for matrices in (levels.up, levels.down):
        assert [found[id(p)] for p in matrices] == [(0.0, "adamw"), (0.1, "adamw")]
