"""The numbers of a run, as `metrics.csv` and for TensorBoard, in the run's own folder.

Special: one row per step however many callbacks report it, columns that may appear late, and a resumed run that goes on
in the same file after dropping what the interrupted run had written beyond the checkpoint. A disk that takes no more
costs rows, not the run.
"""

import contextlib
import csv
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from neuralmem.durable import reason

FILE = "metrics.csv"


class RunLogs(Logger):
    """Writes `metrics.csv` and `tensorboard/` under one folder.

    Args:
        folder: the run's folder
        resume: go on in the files that are there, from the first step that is logged
    """

    def __init__(self, folder: str | Path, resume: bool = False) -> None:
        super().__init__()
        self.folder, self.resume = Path(folder), resume
        self.columns: list[str] = []
        self.row: dict[str, float] = {}
        self.written = -1  # the step of the last row in the file
        self.writer: Any = None  # torch.utils.tensorboard.SummaryWriter, opened by the first row
        self.refused = self.torn = False  # the disk took no more, once; and may have cut the last row short

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of a step; a row is written when the next one begins."""
        with self._going_on():
            self._log(metrics, step or 0)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        if self.writer is None:
            self._open(step)
        if self.row and self.row["step"] != step:
            self._write_row()
        if step == self.written:  # a checkpoint had it written before all of it was known
            *before, self.row = read_metrics(self.folder / FILE)
            self._rewrite(before)
        self.row = {"step": step, **self.row, **metrics}
        for name, value in metrics.items() if not self.refused else ():  # what TensorBoard writes with does not recover
            self.writer.add_scalar(name, value, step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is pending; called before every checkpoint and at the end."""
        with self._going_on():
            if self.row:
                self._write_row()
            if self.writer is not None and not self.refused:
                self.writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
        with self._going_on():
            if self.writer is not None:
                self.writer.close()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """What the disk refuses is lost, and said the first time."""
        try:
            yield
        except OSError as error:
            self.row, self.written, self.torn = {}, -1, True
            if not self.refused:
                print(
                    f"warning: the logs in {self.folder} lack rows: {reason(error)}; training goes on", file=sys.stderr
                )
            self.refused = True

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        board, table = self.folder / "tensorboard", self.folder / FILE
        if not self.resume:
            table.unlink(missing_ok=True)
            for old in board.glob("events.out.tfevents.*"):
                old.unlink()
        elif table.exists():
            self._rewrite([row for row in read_metrics(table) if row["step"] < step])
        self.writer = SummaryWriter(str(board), purge_step=step)

    def _write_row(self) -> None:
        table = self.folder / FILE
        if self.torn and table.exists():
            self._rewrite(read_metrics(table))
        self.torn = False
        if new := [name for name in self.row if name not in self.columns]:
            rows = read_metrics(table) if table.exists() else []
            self.columns += new
            self._rewrite(rows)
        with table.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow({k: f"{v:.8g}" for k, v in self.row.items()})
        self.written, self.row = int(self.row["step"]), {}

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row)]))
        self.written = -1
        temporary = self.folder / f".{FILE}"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows({k: f"{v:.8g}" for k, v in row.items()} for row in rows)
        temporary.replace(self.folder / FILE)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, without the cells that are empty, and without a last line that a crash cut short."""
    with open(path, newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
