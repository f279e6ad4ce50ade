"""The report of a run: what stands in it, that nothing outside is needed, and that it never costs the run."""

import os
import re
import shutil
import signal
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.training import figures, machine, report
from neuralmem.training.faults import Faults
from neuralmem.training.logs import read_metrics
from neuralmem.training.report import main, write_report

Train = Callable[..., Path]
TITLES = ["Loss", "Speed", "Optimisation", "Memory health", "Probe: needle", "Probe: perplexity"]


def pictures(page: str) -> dict[str, bytes]:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    return {title: b64decode(data) for title, data in found}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, float]]:
    """Twelve layers with memory, a curriculum, validation and skipped steps."""
    health = {f"layers.{i}.memory/{name}": 0.1 * i for i in range(12) for name in ("state_norm", "theta_saturated")}
    made = [
        {"step": n, "loss": 3 / n, "lr": 0.1, "gradient_norm": 1 / n, "tokens_per_second": 9.0}
        | ({"val_loss": 4 / n} if n % 10 == 0 else {})
        | {"answers": n / 200, "stage": 1 + n // 100, "mfu": 0.3, "skipped_steps": n // 40, **health}
        for n in range(1, 200)
    ]
    made[50]["loss"] = float("nan")
    return made


def test_a_run_ends_with_its_report(train: Train) -> None:
    run = train("probes", "a", "--report.at_end", "true")
    page = (run / "report.html").read_text()
    drawn = pictures(page)
    assert list(drawn) == TITLES
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    for word in ("10 steps", "MFU, median", "57,164", "forward operations per token", torch.__version__, "TFLOP/s"):
        assert word in page
    assert "max_steps: 10" in page
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", page)


def test_it_can_be_made_again_from_the_folder(train: Train, capsys: pytest.CaptureFixture) -> None:
    run = train("lmm", "a", "--report.at_end", "true")
    first = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    capsys.readouterr()
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_bytes() == first


def test_a_run_that_was_killed_has_one_too(train: Train) -> None:
    run = train("lmm", "a")
    assert not (run / "report.html").exists()
    for file in run.iterdir():
        if file.is_file() and file.name != "metrics.csv":
            file.unlink()
    page = write_report(run).read_text()
    assert list(pictures(page)) == TITLES[:4]
    assert "Machine and versions" not in page


def test_the_time_of_a_resumed_run_is_that_of_all_its_processes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("neuralmem.training.report.time", SimpleNamespace(time=lambda: now[0]))

    def slowly(self: Faults, *args: object) -> None:
        now[0] += 100.0

    monkeypatch.setattr(Faults, "on_train_batch_start", slowly)
    run = train("lmm", "a", "--trainer.max_steps", "3", "--report.at_end", "true")
    assert ", 5:00 on " in (run / "report.html").read_text()
    shutil.copytree(run, "b")
    for name, steps, took in (("a", "5", "8:20"), ("b", "4", "6:40")):
        again = train("lmm", name, "--trainer.max_steps", steps, "--resume", "auto", "--report.at_end", "true")
        assert f", {took} in 2 processes on " in (again / "report.html").read_text()
    train("lmm", "b", "--trainer.max_steps", "5", "--resume", "auto")
    assert machine.read(Path("b"))["seconds"] == 500.0
    assert machine.read(Path("b"))["processes"] == 3


def test_an_interrupted_run_has_one(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuralmem.training.checkpoints import Checkpoints

    def interrupt(self: Checkpoints, trainer: object, *args: object) -> None:
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", interrupt)
    with pytest.raises(SystemExit):
        train("lmm", "a", "--report.at_end", "true")
    assert "4 steps" in Path("a/report.html").read_text()
    assert Path("a/loss.png").exists()


def test_a_report_that_fails_does_not_fail_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk\nfull")

    monkeypatch.setattr("neuralmem.training.report.write_report", fail)
    assert (train("lmm", "a", "--report.at_end", "true") / "model.safetensors").exists()
    assert "warning: no report of a: disk full\n" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=r"which has no metrics\.csv with rows"):
        write_report(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 0


def test_every_panel_says_what_it_shows(rows: list[dict[str, float]]) -> None:
    for draw in (figures.loss, figures.speed, figures.gradients, figures.health):
        figure = draw(rows)
        figure.canvas.draw()
        for axes in figure.axes:
            assert axes.get_title(loc="left")
            assert axes.get_ylabel()
            assert axes.get_xlabel() == "step"
            assert axes.lines


def test_skipped_steps_are_drawn_where_they_are_logged(rows: list[dict[str, float]]) -> None:
    titles = [axes.get_title(loc="left") for axes in figures.gradients(rows).axes]
    assert titles == ["Gradient norm", "Learning rate", "Skipped steps"]
    plain = [{k: v for k, v in row.items() if k != "skipped_steps"} for row in rows]
    assert len(figures.gradients(plain).axes) == 2


def test_whatever_went_wrong_is_in_the_summary() -> None:
    counts = {"skipped_steps": 1.0, "loss_spikes": 2.0, "restarted_memories": 3.0}
    wrong = [counts, counts | {"loss_spikes": 4.0}, {"not_utf8_documents": 5.0}, {"empty_documents": 0.0}]
    rows = [{"step": float(step), "loss": 1.0} | row for step, row in enumerate(wrong, 1)]
    summary = report._summary(rows)
    found = {"skipped steps": "1", "loss spikes": "4", "restarted memories": "6", "not utf8 documents": "5"}
    assert found.items() <= summary.items()
    assert "empty documents" not in summary
    drawn = [axes.get_title(loc="left") for axes in figures.gradients(rows).axes]
    assert drawn[2:] == ["Skipped steps", "Loss spikes", "Restarted memories"]


def test_many_layers_are_named_from_shallow_to_deep(rows: list[dict[str, float]]) -> None:
    figure = figures.health(rows)
    assert [len(axes.lines) for axes in figure.axes] == [12, 12]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 8
    assert (names[0], names[-1]) == ("layer 0", "layer 11")


def test_a_model_without_memory_has_no_health(train: Train) -> None:
    run = train("transformer", "a")
    assert figures.health(read_metrics(run / "metrics.csv")) is None
    assert list(pictures(write_report(run).read_text())) == TITLES[:3]


def test_a_probe_shows_its_last_curves_and_its_numbers_over_the_run() -> None:
    line = {"probe": "p", "seconds": 1.0, "axes": ["tokens", "share of needles"], "values": {"a": 0.5, "b": 1.0}}
    lines = [line | {"step": n, "curves": {"found": [[64, 0.1], [1024, n / 10]]}} for n in (5, 10)]
    left, right = figures.probe(lines).axes
    assert left.get_title(loc="left") == "At step 10 (faint: step 5)"
    assert (left.get_xlabel(), left.get_ylabel(), left.get_xscale()) == ("tokens", "share of needles", "log")
    assert [list(curve.get_xdata()) for curve in right.lines] == [[5, 10], [5, 10]]
