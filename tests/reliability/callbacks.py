"""What is done to a run from inside: named by class path in its options, so it happens in every process of it."""

import random
import subprocess
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch


class AtStep(L.Callback):
    """Run a shell command after an optimizer step, before the run saves."""

    def __init__(self, step: int, command: str) -> None:
        self.step, self.command = step, command

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            subprocess.run(self.command, shell=True, check=True)


class Draws(L.Callback):
    """Draw random numbers of every kind after every batch, more of them on a later rank."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        for _ in range(1 + trainer.global_rank):
            torch.rand(1), random.random(), np.random.random()


class Broken(L.Callback):
    """The last rank's gradients are NaN from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == trainer.world_size - 1 and trainer.global_step >= self.step:
            for p in pl_module.parameters():
                if p.grad is not None:
                    p.grad.mul_(torch.nan)
