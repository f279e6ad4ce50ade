"""Training from a test: the command line in this process, in a folder of its own."""

import os

import pytest

from neuralmem.training.plot import LossPlot


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test needs its files after a power cut, so nothing has to reach the disk: a save takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the loss takes longer than a tiny run; those of a full disk want it drawn."""
    if "small_disk" not in request.fixturenames:
        monkeypatch.setattr(LossPlot, "_draw", lambda *_: None)
