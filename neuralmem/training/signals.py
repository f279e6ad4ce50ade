"""Being told to stop: the step under way is finished and saved, then the process exits with 128 + the signal's number.

Special: SIGTERM, SIGINT and SIGUSR1 (what SLURM sends ahead of a time limit) do the same. All devices stop at the same
step even if one alone was told. Lightning's own answers, one of which saves in the middle of a step, are replaced while
training lasts, and come back after it. A second signal is seen by a thread of its own: the main one may be waiting for
a device that no longer answers, and then runs no handler.
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
from neuralmem.training.ranks import started_by_lightning

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
TOGETHER = 1.0  # seconds; launchers pass on what a terminal or a scheduler sends to every process as well


class Signals(L.Callback):
    """Save and exit at the end of the step in which a signal came; at a second signal, exit at once.

    It has to be the last callback, so that it also sees what came while a checkpoint was written.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self.wakes: int | None = None  # where the interpreter writes the number of every signal

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After Lightning's, which puts back what was there before its own when the trainer is done.
        if trainer.received_sigterm:
            self.received = signal.SIGTERM
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            signal.signal(number, self._receive)
        source, self.wakes = os.pipe()
        os.set_blocking(self.wakes, False)
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(source, trainer.strategy.launcher), daemon=True).start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop_watching()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop_watching()

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
        self.received = self.received or number

    def _watch(self, source: int, launcher: Any) -> None:
        """Read numbers of signals until the other end is closed."""
        first = None
        while woken := os.read(source, 1):
            if woken[0] not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > TOGETHER:
                print("\nsecond signal: exit at once, nothing is saved", file=sys.stderr, flush=True)
                if launcher is not None:
                    launcher.kill(signal.SIGKILL)
                os._exit(128 + woken[0])
        os.close(source)

    def _stop_watching(self) -> None:
        if self.wakes is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.wakes)
            self.wakes = None

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
        sys.exit(0 if started_by_lightning(trainer) else 128 + number)
