"""How much of the machine a run uses: operations per second as a share of the peak, and the most memory it held.

Special: operations are those that the model needs for the tokens it was given and the targets it predicted, on all
devices together; padding, recomputation and masked scores do not count. Nothing here waits for the device.
"""

import functools
import resource
import sys
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from neuralmem.config import ModelConfig
from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.errors import UserError
from neuralmem.training.flops import BACKWARD, Flops, count_flops
from neuralmem.training.peak import peak_of


class Utilization:
    """Counts the operations of training steps.

    Args:
        config: the model's
        device: where it trains

    Attributes:
        peak: what the share is of
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config, self.peak = config, peak_of(device)
        self.count = functools.cache(lambda tokens: _count(config, tokens))

    def of_batch(self, batch: Batch, read: Tensor) -> Tensor | None:
        """Operations of a training step, a scalar on the batch's device; None where nobody has counted the model.

        Args:
            batch: tokens [B, T] and targets
            read: how many real tokens it has
        """
        length = batch.tokens.shape[1]
        count: Flops | None = self.count(length)
        if count is None:
            return None
        predicted = (batch.targets != NO_LOSS).sum()
        return (1 + BACKWARD) * (count.body / length * read + count.head * predicted)

    def share(self, operations: float, seconds: float, devices: int) -> float:
        """Of the devices' peak, 0 to 1."""
        return operations / max(seconds, 1e-9) / (self.peak.flops * devices)


def _count(config: ModelConfig, tokens: int) -> Flops | None:
    try:
        return count_flops(config, tokens)
    except UserError:  # a memory rule of somebody's own
        return None


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: of the GPU by torch, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seconds_left(trainer: L.Trainer, module: Any, seconds: float, before: float) -> float | None:
    """How long a run will go on at its speed so far; None where nothing is known.

    Args:
        trainer: the run's
        module: knows the share of the run that is done
        seconds: since the run, or its resumption, began
        before: the share that was done then
    """
    share = min(1.0, module.progress(trainer.global_step))
    return seconds * (1 - share) / (share - before) if share > before else None
