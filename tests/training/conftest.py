"""Training from a test: the command line in this process, in a folder of its own."""

import pytest
import torch

from neuralmem.training.plot import LossPlot


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the loss takes longer than a tiny run; two files look at it."""
    if request.path.stem not in ("test_run", "test_report"):
        monkeypatch.setattr(LossPlot, "_draw", lambda *_: None)
