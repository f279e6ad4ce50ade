"""A picture of the run: loss and exact answers over the steps, drawn from metrics.csv when training ends."""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from neuralmem.durable import reason
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
                draw(table, table.with_name("loss.png"))
            except OSError as error:
                print(f"warning: loss.png was not drawn: {reason(error)}", file=sys.stderr)


def draw(table: Path, picture: Path) -> None:
    """Draw the columns loss, val_loss and answers of a metrics.csv.

    Args:
        table: the metrics.csv
        picture: the PNG to write
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(table)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    left.set_xlabel("step")
    left.set_ylabel("loss, nats per token")
    _curve(left, rows, "loss", color="#4c72b0")
    _curve(left, rows, "val_loss", color="#dd8452", marker="o")
    if any("answers" in row for row in rows):
        right = left.twinx()
        right.set_ylabel("exact answers")
        right.set_ylim(0, 1.02)
        _curve(right, rows, "answers", color="#55a868", alpha=0.7)
    figure.suptitle(picture.parent.resolve().name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(picture, dpi=150)


def _curve(axes: Any, rows: list[dict[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, **style)
