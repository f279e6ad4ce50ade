"""What a run leaves behind: checkpoints to resume from, and the model as a folder that needs no Lightning.

Special: a checkpoint is renamed into place when it is complete, the oldest are removed after that, and each comes with
`neuralmem.save` into the run's folder. Resuming from one gives the run that was not interrupted. A run that does not go
on from the checkpoints in its folder replaces them, but not before it has one of its own.
"""

import os
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint

from neuralmem.errors import UserError, nearest
from neuralmem.models.checkpoint import save

FOLDER = "checkpoints"


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
        self.saved = -1  # the step of the newest checkpoint
        self.replaced: list[Path] = []  # what an older run left that this one does not go on from

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = trainer.global_step
        self.replaced = [file for step, file in _found(_folder(trainer)) if step > self.saved]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self._save(trainer)

    def save_now(self, trainer: L.Trainer) -> None:
        """Save at the end of a step; on every device at once, and nothing where this step is saved already."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step == self.saved or step == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = _folder(trainer)
        path = folder / f"step={step}.ckpt"
        temporary = folder / f".{path.name}"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, path)
            for old in {*self.replaced} - {path}:
                old.unlink(missing_ok=True)
            for _, old in sorted(_found(folder))[: -self.keep]:
                old.unlink()
        self.replaced = []
        self.saved = step  # at the end: a run that is interrupted while it saves has to save once more
        trainer.strategy.barrier()


class SaveModel(L.Callback):
    """Write the model with `neuralmem.save` into the run's folder, with every checkpoint, and what it was made of.

    Not earlier: a run that fails before its first checkpoint leaves the finished run in its folder as it was.

    Args:
        config: the resolved configuration as YAML, for config.yaml
        data: the data's part of it, for data.json
    """

    def __init__(self, config: str, data: dict[str, Any]) -> None:
        self.config, self.data = config, data

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
            save(trainer.default_root_dir, pl_module.model, tokenizer, data=self.data)
            (Path(trainer.default_root_dir) / "config.yaml").write_text(self.config)


def find_checkpoint(run: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint that `--ckpt_path` means.

    Args:
        run: the run's folder
        wanted: a file, "last" for the newest of the run (None if it has none), or None

    Raises:
        UserError: there is no such file.
    """
    if wanted is None:
        return None
    folder = Path(run) / FOLDER
    if wanted == "last":
        return max(_found(folder))[1] if _found(folder) else None
    path = Path(wanted)
    if not path.is_file():
        known = ["last", *(str(file) for _, file in _found(folder))]
        raise UserError(
            f"ckpt_path is {wanted!r}, which is no file; it must be a checkpoint or 'last'{nearest(wanted, known)}"
        )
    return path


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _found(folder: Path) -> list[tuple[int, Path]]:
    named = [(re.fullmatch(r"step=(\d+)\.ckpt", file.name), file) for file in folder.glob("*.ckpt")]
    return [(int(match[1]), file) for match, file in named if match]
