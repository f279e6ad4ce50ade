"""A picture of the run: loss and exact answers over the steps, drawn from metrics.csv when training ends."""

import sys
from pathlib import Path

import lightning.pytorch as L

from neuralmem.durable import reason
from neuralmem.training import figures
from neuralmem.training.logs import FILE, read_metrics


class LossPlot(L.Callback):
    """Draw `loss.png` into the run's folder at the end, however it ends."""

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._draw(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.global_step:
            self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        table = Path(trainer.default_root_dir) / FILE
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        if table.exists():
            try:
                figure = figures.loss(read_metrics(table))
                figure.suptitle(table.parent.resolve().name)
                figure.savefig(table.with_name("loss.png"), dpi=150)
            except OSError as error:
                print(f"warning: loss.png was not drawn: {reason(error)}", file=sys.stderr)
