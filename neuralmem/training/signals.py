"""Being told to stop: the step under way is finished and saved, then the process exits with 128 + the signal's number.

Special: SIGTERM, SIGINT and SIGUSR1 (what SLURM sends ahead of a time limit) do the same. All devices stop at the same
step even if one alone was told. Lightning's own answers, one of which saves in the middle of a step, are replaced while
training lasts, and come back after it.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch

from neuralmem.training.checkpoints import Checkpoints

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
TOGETHER = 1.0  # seconds; launchers pass on what a terminal or a scheduler sends to every process as well


class Signals(L.Callback):
    """Save and exit at the end of the step in which a signal came; at a second signal, exit at once.

    It has to be the last callback, so that it also sees what came while a checkpoint was written.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self.when = 0.0  # seconds on the clock

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After Lightning's, which puts back what was there before its own when the trainer is done.
        if trainer.received_sigterm:
            self.received, self.when = signal.SIGTERM, time.monotonic()
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self._obey(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        # With several devices not here: they need not have equally many batches, so they cannot agree.
        if trainer.world_size == 1 and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._obey(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._obey(trainer)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self.when = number, now
        elif now - self.when > TOGETHER:
            print(f"\nsecond signal: exit at once, without {self.name} being obeyed", file=sys.stderr, flush=True)
            os._exit(128 + number)

    @property
    def name(self) -> str:
        """Of the signal that was received."""
        return signal.Signals(self.received).name

    def _obey(self, trainer: L.Trainer) -> None:
        told = torch.tensor(self.received, device=trainer.strategy.root_device)
        number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number:
            return
        self.received = number
        problem = None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                problem = callback.save_now(trainer) or problem
        if trainer.is_global_zero:
            done = problem or f"is saved in {trainer.default_root_dir}; go on with --resume auto"
            print(f"\n{self.name}: step {trainer.global_step:,} {done}", file=sys.stderr, flush=True)
        sys.exit(128 + number)
