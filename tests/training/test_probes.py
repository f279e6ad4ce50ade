"""Probes while training: on schedule, without a trace in the run, and never the end of it."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.generation.scheduled import Probe, Reading
from neuralmem.training.cli import main
from neuralmem.training.logs import read_metrics
from neuralmem.training.probes import Probes, read_probes

Train = Callable[..., Path]
HERE = "tests.training.test_probes"


class Noisy(Probe):
    """Draws from every generator, and leaves dropout and gradients as training must not find them."""

    name = "noisy"

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def __call__(self, model: Any, tokenizer: Any, data: Mapping[str, Any]) -> Reading:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3), np.random.rand(3)
        if self.fails:
            raise RuntimeError("no such\nthing")
        return Reading({"x": 1.5}, ("tokens", "y"), {"curve": [(1.0, 2.0)]})


class Endless(Probe):
    """Never done; while it runs, the process is told to stop. The second time it is."""

    name = "endless"
    asked = 0

    def __call__(self, model: Any, tokenizer: Any, data: Mapping[str, Any]) -> Reading:
        model(torch.zeros(1, 4, dtype=torch.long))
        Endless.asked += 1
        if Endless.asked > 1:
            return Reading({"x": 2.5}, ("tokens", "y"), {})
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10_000):
            model(torch.zeros(1, 4, dtype=torch.long))
        raise AssertionError("the signal was not obeyed")


@pytest.fixture
def noisy(tmp_path: Path) -> Callable[[bool], list[str]]:
    def options(fails: bool) -> list[str]:
        file = tmp_path / "probes.yaml"
        file.write_text(f"probes: {{every: 4, run: [{{class_path: {HERE}.Noisy, init_args: {{fails: {fails}}}}}]}}")
        return ["--config", str(file)]

    return options


def test_probes_run_on_schedule_and_at_the_end(train: Train, noisy: Callable[[bool], list[str]]) -> None:
    run = train("transformer", "a", *noisy(False))
    lines = read_probes(run / "probes.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert lines[0]["curves"] == {"curve": [[1.0, 2.0]]}
    logged = {row["step"]: row["probe/noisy/x"] for row in read_metrics(run / "metrics.csv") if "probe/noisy/x" in row}
    assert logged == {4: 1.5, 8: 1.5, 10: 1.5}


class Newest(Probe):
    """Looks which step is safe."""

    name = "newest"

    def __call__(self, model: Any, tokenizer: Any, data: Mapping[str, Any]) -> Reading:
        return Reading({"step": max(float(path.name[5:]) for path in Path("a/checkpoints").glob("step=*"))})


def test_a_step_is_saved_before_it_is_probed_and_said_last(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "probes.yaml").write_text(f"probes: {{every: 4, run: [{{class_path: {HERE}.Newest}}]}}")
    options = ["--config", "probes.yaml", "--checkpoint.every", "4", "--report.at_end", "true"]
    run = train("transformer", "a", *options)
    assert [line["values"]["step"] for line in read_probes(run / "probes.jsonl")] == [4, 8, 10]
    *before, last = capsys.readouterr().err.splitlines()
    assert last.endswith(", saved in a")
    assert any(line.startswith("step 10: newest: step 10") for line in before)


def test_a_probe_leaves_no_trace_in_the_run(train: Train, noisy: Callable[[bool], list[str]]) -> None:
    probed, plain = train("mag", "a", *noisy(False)), train("mag", "b")
    assert (probed / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    losses = [[row["loss"] for row in read_metrics(run / "metrics.csv")] for run in (probed, plain)]
    assert losses[0] == losses[1]


def test_a_probe_that_fails_is_a_line_of_warning(
    train: Train, noisy: Callable[[bool], list[str]], capsys: pytest.CaptureFixture
) -> None:
    run = train("transformer", "a", *noisy(True))
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert lines == [f"warning: probe noisy failed at step {step}: no such thing" for step in (4, 8, 10)]
    assert not (run / "probes.jsonl").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_run_that_is_told_to_stop_gives_up_its_probe(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = (f"{{class_path: {HERE}.{name}}}" for name in ("Endless", "Noisy"))
    (tmp_path / "probes.yaml").write_text(f"probes: {{every: 4, run: [{', '.join(names)}]}}")
    options = ["--config", str(tmp_path / "probes.yaml"), "--checkpoint.every", "4"]  # saved before it is asked
    with pytest.raises(SystemExit) as stop:
        train("transformer", "a", *options)
    assert stop.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert "probe endless was given up at step 4: told to stop" in said
    assert "SIGTERM: step 4 is saved" in said
    assert not (tmp_path / "a" / "probes.jsonl").exists()
    whole = train("transformer", "whole")
    (tmp_path / "a" / "probes.jsonl").write_text('{"step": 4, "probe": "nois')  # killed while it wrote
    run = train("transformer", "a", *options, "--resume", "auto")
    assert losses(run) == losses(whole)
    asked = [(line["step"], line["probe"]) for line in read_probes(run / "probes.jsonl")]
    assert asked == [(step, name) for step in (4, 8, 10) for name in ("endless", "noisy")]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.csv") if "loss" in row]


def test_a_resumed_run_goes_on_in_the_file(train: Train, noisy: Callable[[bool], list[str]]) -> None:
    run = train("transformer", "a", *noisy(False))
    train("transformer", "a", *noisy(False), "--ckpt_path", str(run / "checkpoints" / "step=5"))
    assert [line["step"] for line in read_probes(run / "probes.jsonl")] == [4, 8, 10]
    train("transformer", "a")
    assert read_probes(run / "probes.jsonl") == []


def test_the_probes_of_evaluation_are_named_by_class_path(train: Train, capsys: pytest.CaptureFixture) -> None:
    lines = read_probes(train("probes", "a") / "probes.jsonl")
    assert [(line["step"], line["probe"]) for line in lines] == [
        (step, name) for step in (5, 10) for name in ("needle", "perplexity")
    ]
    assert lines[0]["values"].keys() == {"found_128", "likeliest_128", "found_256", "likeliest_256"}
    shown = capsys.readouterr().err
    assert "step 5: needle: found_128 0, " in shown
    assert "step 10: perplexity: loss_to_32 " in shown


def test_tokens_that_are_no_text_have_no_needles(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "probes.yaml"
    file.write_text("probes: {run: [{class_path: neuralmem.evaluation.in_training.Needles}]}")
    train("recall", "a", "--config", str(file))
    assert "warning: probe needle failed at step 10: probe needle needs a tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ("{every: 0}", "probes.every is 0; it must be a positive integer"),
        ("{run: [{class_path: neuralmem.evaluation.in_training.Nedles}]}", "Nedles"),
        (
            "{run: [{class_path: neuralmem.evaluation.in_training.Needles, init_args: {samples: 0}}]}",
            "probes.samples is 0; it must be a positive integer",
        ),
    ],
)
def test_a_mistake_is_one_line(probes: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = Path(__file__).parents[2] / "configs" / "tiny" / "transformer.yaml"
    (tmp_path / "p.yaml").write_text(f"probes: {probes}")
    assert main(["--config", str(config), "--config", str(tmp_path / "p.yaml"), "--run", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_probes_without_a_list_do_nothing() -> None:
    assert Probes().run == []
    with pytest.raises(UserError, match=r"^probes\.every is -1"):
        Probes(every=-1)
