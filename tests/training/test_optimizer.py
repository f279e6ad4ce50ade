"""Which parameters decay, and how the learning rate moves."""

import math
from types import SimpleNamespace

import pytest
import torch

from neuralmem.config import MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.causal_lm import CausalLM
from neuralmem.training.module import LanguageModel
from neuralmem.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, parameter_groups


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rule", ["titans", "delta"])
def test_only_matrices_of_feature_maps_decay(tied: bool, rule: str) -> None:
    config = ModelConfig(17, width=16, depth=1, memory=MemoryConfig(rule=rule), tie_embeddings=tied)
    model = CausalLM(config)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1))
    decayed, others = ({names[id(p)] for p in g["params"]} for g in sorted(groups, key=lambda g: -g["weight_decay"]))
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


def test_a_step_counts_as_a_change_of_the_weights() -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1))
    optimizer = make_optimizer(model, OptimizerConfig())
    logits, state = model(torch.arange(8)[None])
    logits.sum().backward()
    optimizer.step()
    with pytest.raises(UserError, match="earlier weights"):
        state.identity()


def test_every_parameter_moves() -> None:
    model = CausalLM(ModelConfig(17, width=16, depth=1))
    optimizer = make_optimizer(model, OptimizerConfig())
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_float16_gradients_can_be_clipped(precision: str, fused: bool) -> None:
    module = LanguageModel(vocab_size=17, width=16, depth=1)
    module.trainer = SimpleNamespace(precision=precision, callbacks=[], max_steps=10)
    optimizer = module.configure_optimizers()["optimizer"]
    assert optimizer.defaults["fused"] is fused
    refused = getattr(optimizer, "_step_supports_amp_scaling", False)  # what Lightning asks before it clips
    assert refused is fused


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_schedules(schedule: str, half: float) -> None:
    share = learning_rate(OptimizerConfig(warmup=10, schedule=schedule, final=0.1), lambda step: step / 100)
    assert share(0) == pytest.approx(0.1)
    assert share(4) == pytest.approx(0.5, rel=0.05)
    assert share(50) == pytest.approx(half)
    assert share(100) == share(1000) == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert all(math.isfinite(share(step)) for step in range(200))


WRONG = [{"lr": 0.0}, {"eps": -1.0}, {"weight_decay": -0.1}, {"warmup": -1}, {"gate_lr": 0.0}, {"betas": (0.9, 1.0)}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_named(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"optimizer.{next(iter(wrong))} is"):
        OptimizerConfig(**wrong)
