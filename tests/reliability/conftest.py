"""Training from a test: the command line in this process, in a folder of its own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralmem.training.cli import main

TINY = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test needs its files after a power cut, so nothing has to reach the disk: a save takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Call with the name of a tiny config, a run's name and options; returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def run(config: str, name: str, *options: str) -> Path:
        assert main(["--config", str(TINY / f"{config}.yaml"), "--run", name, *options]) == 0
        return tmp_path / name

    return run
