"""metrics.csv: one row per step, late columns, and going on after an interruption."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuralmem.training import meter
from neuralmem.training.logs import RunLogs, read_metrics


def test_values_of_one_step_share_a_row(tmp_path: Path) -> None:
    logs = RunLogs(tmp_path)
    logs.log_metrics({"loss": 2.0}, step=1)
    logs.log_metrics({"val_loss": 3.0}, step=1)
    logs.log_metrics({"loss": 1.0, "answers": 0.5}, step=2)
    logs.finalize("success")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows == [{"step": 1, "loss": 2.0, "val_loss": 3.0}, {"step": 2, "loss": 1.0, "answers": 0.5}]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_row_that_a_checkpoint_had_written_early_is_completed(tmp_path: Path) -> None:
    logs = RunLogs(tmp_path)
    for step in (1, 2):
        logs.log_metrics({"loss": 2.0}, step=step)
        logs.save()
        logs.log_metrics({"val_loss": 3.0}, step=step)
        logs.save()
        logs.save()
    logs.finalize("success")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows == [{"step": step, "loss": 2.0, "val_loss": 3.0} for step in (1, 2)]


def test_a_resumed_run_replaces_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    first = RunLogs(tmp_path)
    for step in range(1, 8):
        first.log_metrics({"loss": float(step)}, step=step)
    first.finalize("interrupted")
    second = RunLogs(tmp_path, resume=True)
    for step in range(5, 7):
        second.log_metrics({"loss": step / 10}, step=step)
    second.finalize("success")
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3, 4, 0.5, 0.6]


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logs = RunLogs(tmp_path)
        logs.log_metrics({"loss": value}, step=1)
        logs.finalize("success")
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")] == [2.0]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_logger_of_the_configuration_stands_beside_the_runs_own(train: Callable[..., Path]) -> None:
    logger = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: other, name: x, version: y}}"
    run = train("lmm", "a", "--trainer.logger", logger, "--trainer.max_steps", "2")
    assert [row["step"] for row in read_metrics(run / "metrics.csv")] == [1, 2]
    theirs = read_metrics(run.parent / "other" / "x" / "y" / "metrics.csv")
    assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in read_metrics(run / "metrics.csv")])


def test_processes_add_up_the_same_values_whatever_order_each_met_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step returns was looked through as a set: in some runs of two devices each added its tokens to the other's
    restarted memories."""
    order: list[float] = []

    def reduce(x: torch.Tensor, reduce_op: str) -> torch.Tensor:
        order.append(x.item())
        return x

    optimizer = SimpleNamespace(param_groups=[{"lr": 1.0}])
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce), optimizers=[optimizer])
    for name, value in {"_log": None, "curriculum": None}.items():
        monkeypatch.setattr(meter, name, lambda *given, value=value: value)
    monkeypatch.setattr(meter.Meter, "_resources", lambda *given: {})
    names = ["tokens", "restarted", "loss", "loss count", "gradient_norm", "gradient_norm count"]
    values = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    for given in (names, names[::-1]):
        one = meter.Meter()
        one.sums = {name: values[name] for name in given}
        one._write(trainer, None)  # type: ignore[arg-type]
    assert order[: len(names)] == order[len(names) :]
