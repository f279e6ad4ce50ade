"""When a run saves, what it keeps, and what it does when the disk refuses.

Special: a failed save is said in one line, costs no earlier checkpoint and does not end the run; only the last one
does. Retention counts whole checkpoints alone. A run that does not go on from the checkpoints in its folder replaces
them, but not before it has one of its own. Saves happen after optimizer steps, never between the batches of one; a run
that an error ends between two steps, such as data that cannot be read any more, is saved as well.
"""

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint

from neuralmem import durable
from neuralmem.errors import UserError
from neuralmem.training.folder_io import FolderIO
from neuralmem.training.ranks import place_of, put_back
from neuralmem.training.resume import FOLDER, broken, found, set_aside


class Checkpoints(Checkpoint):
    """Save during the run, at its end and when it is interrupted.

    Args:
        every: optimizer steps between checkpoints
        keep: how many to keep; the newest stay
    """

    def __init__(self, every: int = 1000, keep: int = 2) -> None:
        super().__init__()
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise UserError(f"checkpoint.{name} is {value}; it must be a positive integer")
        self.every, self.keep = every, keep
        self.saved = self.tried = -1  # the step of the newest checkpoint, and of the last attempt
        self.replaced: list[Path] = []  # what an older run left that this one does not go on from
        self.known: dict[Path, object] = {}  # verified checkpoints, and what their files looked like then
        self.between: dict[str, Any] | None = None  # where the last step left the run, until the next one begins
        self.failed = False  # by an error, so that `between` is what has to be saved

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        self._io(trainer).describe(pl_module.model.config, getattr(trainer.datamodule, "tokenizer", None))  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = self.tried = trainer.global_step
        later = {step: path for step, path in found(_folder(trainer)) if step > self.saved}
        self.replaced = list(later.values())
        if later and trainer.is_global_zero:
            _say(
                trainer,
                f"warning: {_folder(trainer)} has checkpoints up to step {max(later):,}, which the first of this run "
                "will replace; --resume auto goes on from them",
            )

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.between = None

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if trainer.world_size == 1 and not trainer.fit_loop._should_accumulate():
            self.between = place_of(trainer)
        # Between the batches of a step the number is that of the step before, which was tried already.
        if step % self.every == 0 and step != self.tried:
            self.save_now(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.between = None
        if problem := self._save(trainer):
            kept = f"the newest checkpoint is of step {self.saved:,}" if self.saved > 0 else "there is no checkpoint"
            raise UserError(f"the run has ended, but its last state, step {trainer.global_step:,}, {problem}; {kept}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Before training starts there is nothing to save, but a checkpoint that is being loaded to spoil.
        if isinstance(exception, KeyboardInterrupt) and self.saved >= 0:
            self.save_now(trainer)
        # With several devices an error of one leaves it alone, and saving takes all.
        elif isinstance(exception, Exception) and self.between is not None:
            self.failed, before = True, self.saved
            try:
                self.save_now(trainer)
            except Exception as error:  # the one that ended the run is what has to be seen
                _say(trainer, f"warning: step {trainer.global_step:,} was not saved: {' '.join(str(error).split())}")
            if self.saved > before:
                _say(trainer, f"step {self.saved:,} is saved; go on with --resume auto")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.failed and self.between is not None:
            put_back(checkpoint, self.between)

    def save_now(self, trainer: L.Trainer) -> str | None:
        """Save, unless this step is saved; on every rank at once. Says and returns what went wrong; None: nothing."""
        if (problem := self._save(trainer)) and trainer.is_global_zero:
            _say(trainer, f"warning: step {trainer.global_step:,} {problem}; earlier checkpoints are kept")
        return problem

    def _save(self, trainer: L.Trainer) -> str | None:
        """Returns what went wrong, on every rank; None: nothing did."""
        step = trainer.global_step
        if step == self.saved or step == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        path = _folder(trainer) / f"step={step}"
        # Before the checkpoint: a run that goes on from it does not log this step again.
        for logger in trainer.loggers:
            try:
                logger.save()
            except OSError as error:
                _say(trainer, f"warning: {type(logger).__name__} was not saved: {durable.reason(error)}")
        with self._io(trainer).failing_softly() as failures:
            trainer.save_checkpoint(path)
        problem = f"was not saved: {failures[0]}" if failures else None
        self.tried = step
        if problem := trainer.strategy.broadcast(problem):
            return problem
        if trainer.is_global_zero:
            self._tidy(trainer, path)
        self.replaced = []
        self.saved = step  # at the end: a run that is interrupted while it saves has to save once more
        trainer.strategy.barrier()
        return None

    def _tidy(self, trainer: L.Trainer, new: Path) -> None:
        """Remove what `new` makes superfluous: an earlier run's checkpoints, and whole ones beyond `keep`."""
        self.known[new] = _look(new)
        try:
            for old in {*self.replaced} - {new}:
                durable.remove(old)
            good = [path for _, path in sorted(found(_folder(trainer)), reverse=True) if self._is_whole(path)]
            for old in good[self.keep :]:
                durable.remove(old)
        except OSError as error:
            _say(trainer, f"warning: old checkpoints were not removed: {durable.reason(error)}")

    def _is_whole(self, path: Path) -> bool:
        """Verified by this run and untouched since, or verified now; a broken one is set aside, one that cannot be read
        is left where it is, and not counted."""
        look = _look(path)
        if self.known.get(path) != look:
            try:
                problem = broken(path)
            except durable.Unreachable:
                return False
            if problem is not None:
                set_aside(path, problem)
                return False
            self.known[path] = look
        return True

    @staticmethod
    def _io(trainer: L.Trainer) -> FolderIO:
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, FolderIO), "the command line gives the trainer a FolderIO"
        return io


def _look(path: Path) -> list[tuple[str, int, int, int]]:
    """What changes when somebody touches the files of a folder, short of reading them."""
    with os.scandir(path) as files:
        looks = [(file.name, file.stat()) for file in files]
    return sorted((name, look.st_ino, look.st_size, look.st_mtime_ns) for name, look in looks)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _say(trainer: L.Trainer, text: str) -> None:
    bar = trainer.progress_bar_callback
    if bar is not None and bar.is_enabled:  # type: ignore[attr-defined]
        bar.print(text)
    else:
        print(text, file=sys.stderr)
