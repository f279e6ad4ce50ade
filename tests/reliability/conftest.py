"""Training from a test: the command line in this process, in a folder of its own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralmem.training.cli import main
from neuralmem.training.plot import LossPlot

TINY = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test needs its files after a power cut, so nothing has to reach the disk: a save takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the loss takes longer than a tiny run; those of a full disk want it drawn."""
    if "small_disk" not in request.fixturenames:
        monkeypatch.setattr(LossPlot, "_draw", lambda *_: None)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Call with the name of a tiny config, a run's name and options; returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def run(config: str, name: str, *options: str) -> Path:
        arguments = ["--config", str(TINY / f"{config}.yaml"), "--run", name, "--report.at_end", "false"]
        assert main([*arguments, *options]) == 0
        return tmp_path / name

    return run
