"""Readers and writers at the same time: a reader finds one whole generation, a second trainer is refused."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neuralmem as nm
from neuralmem.training.cli import main
from tests.conftest import TINY
from tests.reliability.saving import MODEL

ROOT = Path(__file__).parents[2]


def filled(number: int) -> nm.CausalLM:
    """A model of 1 or 2 layers, all of whose weights are `number`."""
    model = nm.CausalLM(replace(MODEL, depth=1 + number % 2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float(number))
    return model


@pytest.mark.parametrize("writers", [1, 2])
def test_a_reader_finds_one_whole_generation(tmp_path: Path, writers: int) -> None:
    """The generations differ in config and weights, so a mixture of two cannot be loaded, or shows."""
    folder, errors, loads = tmp_path / "run", [], []
    models = [filled(number) for number in range(1, 5)]
    nm.save(folder, models[0], nm.ByteTokenizer())

    def write() -> None:
        number, end = 0, time.monotonic() + 60
        while (number < 20 or len(loads) < 10) and not errors and time.monotonic() < end:
            nm.save(folder, models[number % 4], nm.ByteTokenizer())
            number += 1

    def read() -> None:
        while any(thread.is_alive() for thread in threads):
            try:
                model, _ = nm.load(folder)
                values = {x for weight in model.parameters() for x in weight.unique().tolist()}
                assert len(values) == 1, values
                assert model.config.depth == 1 + int(max(values)) % 2
                loads.append(max(values))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in (*threads, reader):
        thread.join()
    assert errors == []
    assert len(loads) >= 10
    assert len(set(loads)) > 1
    assert not list(folder.glob(".*"))


def test_a_second_trainer_is_refused_and_a_dead_one_does_not_block(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    options = ["--config", str(TINY / "transformer.yaml"), "--run", str(run), "--checkpoint.every", "2"]
    options += ["--data.num_workers", "2", "--resume", "auto"]  # loader processes must not keep the lock
    options += ["--report.at_end", "false"]
    command = [sys.executable, str(ROOT / "train.py"), *options, "--trainer.max_steps", "1000000"]
    first = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not list(run.glob("checkpoints/step=*")) and time.monotonic() < deadline:
            assert first.poll() is None
            time.sleep(0.1)
        assert main(options) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: run is '{run}', where process {first.pid} on ")
        assert said.count("\n") == 1
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    last = max(int(path.name.split("=")[1]) for path in run.glob("checkpoints/step=*"))
    assert main([*options, "--trainer.max_steps", str(last + 3)]) == 0
    assert "going on from" in capsys.readouterr().err
    assert (run / "checkpoints" / f"step={last + 3}").is_dir()
    assert not list(run.rglob(".*"))


def test_the_same_command_line_again_and_again(train: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    """Started, gone on with, and with nothing left to do."""
    options = ["--trainer.max_steps", "4", "--checkpoint.every", "2", "--resume", "auto"]
    run = train("transformer", "a", *options)
    assert "no checkpoint in a: starting from the beginning" in capsys.readouterr().err
    before = {
        file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.parent.name != "tensorboard"
    }
    train("transformer", "a", *options)
    assert "going on from a/checkpoints/step=4" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before
    shutil.rmtree(run / "checkpoints" / "step=4")  # as if it had been killed before
    train("transformer", "a", *options)
    assert "going on from a/checkpoints/step=2" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before[run / "model.safetensors"]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=2", "step=4"}
