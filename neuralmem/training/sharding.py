"""A model spread over the devices: every one holds a part of each weight and of the optimizer, and reads its own rows.

torch's FSDP2 (`fully_shard`) through Lightning's ModelParallelStrategy: `--trainer.strategy fsdp2`. Special: a layer is
the unit that is gathered, and a checkpoint holds whole tensors, as any other does.
"""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from neuralmem.errors import UserError
from neuralmem.memory._memory import Memory
from neuralmem.models.causal_lm import CausalLM
from neuralmem.training.optim import refuse_another

NAME = "fsdp2"


class Sharded(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes, with checkpoints as one file that does not depend on their number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            refuse_another(optimizer, saved)  # before numbers become names of this optimizer's parameters
            by_name = _rekeyed(saved, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(self.model, optimizer, by_name, options=options)
        return checkpoint

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, as the same optimizer has it on one device; empty on all ranks but the first."""
        assert self.model is not None
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # what Lightning has wrapped
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        by_name = get_optimizer_state_dict(self.model, optimizer, options=options)
        if not self.is_global_zero:
            return {}
        return _rekeyed(by_name, {name: number for number, name in enumerate(self._names(optimizer))})

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Names of an optimizer's parameters, in the order of its groups, by which torch numbers them. Lightning's own
        numbers are in the order of the model, and so belong to other parameters wherever there are groups."""
        assert self.model is not None
        names = {id(p): name for name, p in self.model.named_parameters()}
        return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _rekeyed(state: dict[str, Any], keys: dict[Any, Any]) -> dict[str, Any]:
    """The state of an optimizer with other keys for its parameters."""
    groups = [group | {"params": [keys[p] for p in group["params"]]} for group in state["param_groups"]]
    return {"state": {keys[p]: values for p, values in state["state"].items()}, "param_groups": groups}


if NAME not in StrategyRegistry:
    StrategyRegistry.register(NAME, Sharded, description="FSDP2 over all devices")


def shard(model: CausalLM, mesh: DeviceMesh) -> None:
    """Spread a model's parameters over the devices of a mesh; rank 0's are everybody's.

    Raises:
        UserError: a kind of model whose layers cannot be gathered one by one.
    """
    if model.name != CausalLM.name:
        raise UserError(f"trainer.strategy is {NAME!r}, which takes model.model 'causal_lm' only, not {model.name!r}")
    for p in model.parameters():
        whole = p.detach().to(mesh.device_type)
        torch.distributed.broadcast(whole, src=0)
        p.data.copy_(whole)
    over = mesh["data_parallel"]
    for layer in model.layers:
        layer.register_forward_hook(_with_first_weights)  # before `fully_shard`'s own, which lets the weights go
        fully_shard(layer, mesh=over)
    fully_shard(model, mesh=over)


def gathered(model: nn.Module, on: bool) -> None:
    """Keep the whole weights on every device, or let them go: validation, where devices need not have equally many
    batches, would otherwise wait for batches that never come."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(not on, recurse=False)
            module.unshard() if on else module.reshard()


def whole(x: Tensor) -> Tensor:
    """A tensor that may be spread over devices as a plain one; all devices have to ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def part(x: Tensor) -> Tensor:
    """This device's part of a tensor that may be spread over devices."""
    return x.to_local() if isinstance(x, DTensor) else x


def _with_first_weights(layer: nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """The same output, of which the memories' first weights have a gradient, if only of zero: where no document starts,
    carried memory replaces them, and devices add up gradients of the same parameters or wait for each other."""
    y, state = output
    weights = [w for module in layer.modules() if isinstance(module, Memory) for w in module.initial()[0]]
    return sum((w[:0].sum().to(y.dtype) for w in weights), start=y), state
