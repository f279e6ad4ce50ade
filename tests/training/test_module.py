"""The training step by itself: what carried memory does to gradients."""

from types import SimpleNamespace

import pytest
import torch

from neuralmem.config import MemoryConfig
from neuralmem.data.batch import Batch
from neuralmem.errors import UserError
from neuralmem.probe import recording
from neuralmem.training.loss import write_price
from neuralmem.training.module import LanguageModel
from neuralmem.training.optim import OptimizerConfig


def carried_step(rule: str, world_size: int, broken: bool = False) -> tuple[LanguageModel, torch.Tensor]:
    """A step whose rows go on in the batch before, so that no memory begins with its first weights."""
    torch.manual_seed(0)
    memory = MemoryConfig(rule=rule, heads=1, chunk_size=4)
    module = LanguageModel(vocab_size=17, width=16, depth=1, pattern=["titans_lmm"], memory=memory)
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(carry_memory=True), world_size=world_size)
    module.log = lambda *_, **__: None
    tokens = torch.randint(17, (2, 8))
    batch = Batch(tokens, tokens, None, None, None, None, None)
    module.training_step(batch, 0)
    if broken:
        for weight in module.model.layers[0].memory.initial()[0]:
            weight.data.fill_(torch.inf)
    loss = module.training_step(batch, 1)["loss"]
    loss.backward()
    return module, loss


@pytest.mark.parametrize("rule", ["titans", "delta"])
def test_only_first_weights_lack_a_gradient_and_ddp_gets_one(rule: str) -> None:
    alone, loss = carried_step(rule, world_size=1)
    lacking = {name for name, p in alone.named_parameters() if p.grad is None}
    assert lacking == {name for name, _ in alone.named_parameters() if ".memory.weight" in name}
    one_of_two, same = carried_step(rule, world_size=2)
    assert torch.equal(loss, same)
    for name, p in one_of_two.named_parameters():
        assert p.grad is not None
        assert bool(p.grad.any()) is (name not in lacking)


def test_weights_that_are_not_finite_leave_the_loss_alone() -> None:
    _, loss = carried_step("titans", world_size=2, broken=True)
    assert loss.isfinite()


def test_a_model_without_memory_can_be_carried_by_two_processes() -> None:
    module = LanguageModel(vocab_size=17, width=16, depth=1, pattern=["transformer"])
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(carry_memory=True), world_size=2)
    module.log = lambda *_, **__: None
    tokens = torch.randint(17, (2, 8))
    assert module.training_step(Batch(tokens, tokens, None, None, None, None, None), 0)["loss"].requires_grad


def test_optimizers_that_need_whole_matrices_do_not_get_parts() -> None:
    module = LanguageModel(OptimizerConfig(name="m3"), vocab_size=17, width=16, depth=1, pattern=["transformer"])
    module.trainer = SimpleNamespace(precision="32-true", max_steps=1, callbacks=[])
    assert module.configure_optimizers()["optimizer"] is not None
    module._device_mesh = object()
    with pytest.raises(
        UserError, match=r"^optimizer.name is 'm3'; with trainer.strategy fsdp2 it must be one of adamw, "
    ):
        module.configure_optimizers()


def test_the_cost_of_writing_is_priced_token_by_token() -> None:
    """The mean of the prices, not the price of the mean gate."""
    torch.manual_seed(0)
    tokens = torch.randint(17, (2, 8))
    losses = []
    for options in ({}, {"write_cost": 0.5}, {"write_cost": 0.5, "write_floor": 1e-2}):
        torch.manual_seed(0)
        memory = MemoryConfig(heads=1, chunk_size=4)
        module = LanguageModel(
            OptimizerConfig(**options), vocab_size=17, width=16, depth=1, pattern=["titans_lmm"], memory=memory
        )
        with torch.no_grad():
            module.model.layers[0].memory.gate_map.weight.normal_(std=3)
        module.trainer = SimpleNamespace(datamodule=SimpleNamespace(carry_memory=False), world_size=1)
        module.log = lambda *_, **__: None
        losses.append(module.training_step(Batch(tokens, tokens, None, None, None, None, None), 0)["loss"])
    with recording(module.model, per_token=True) as record:
        module.model(tokens)
    gates = record.tokens()["layers.0.memory/write"]
    assert gates.min() < 0.1 < 0.5 < gates.max()
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * gates.mean())
    torch.testing.assert_close(losses[2] - losses[0], 0.5 * write_price(gates, 1e-2).mean())
