"""Something goes wrong with the disk at a chosen step of a run."""

import subprocess
from typing import Any

import lightning.pytorch as L


class AtStep(L.Callback):
    """Run a shell command after an optimizer step, before the run saves."""

    def __init__(self, step: int, command: str) -> None:
        self.step, self.command = step, command

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            subprocess.run(self.command, shell=True, check=True)
