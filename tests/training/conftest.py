"""Training from a test: the command line in this process, in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuralmem.training.cli import main
from neuralmem.training.plot import LossPlot

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the loss takes longer than a tiny run; two files look at it."""
    if request.path.stem not in ("test_run", "test_report"):
        monkeypatch.setattr(LossPlot, "_draw", lambda *_: None)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Call with the name of a tiny config, a run's name and options; returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def run(config: str, name: str, *options: str) -> Path:
        arguments = ["--config", str(CONFIGS / "tiny" / f"{config}.yaml"), "--run", name, "--report.at_end", "false"]
        assert main([*arguments, *options]) == 0
        return tmp_path / name

    return run
