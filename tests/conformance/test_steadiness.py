"""The watch over a stream sees what grows, and takes for a trend neither a norm that wanders nor a slow first half."""

import pytest
import torch

from tests.conformance.steadiness import EVERY, Watch

PIECES, MIB = 512, 2**20
ALLOWED = {"drift": (0.05,), "slower": 1.3, "grown": 4 * MIB}


def watch(**series: torch.Tensor) -> Watch:
    """A stream whose norm, times, state and process were these, by piece."""
    seen, level = Watch(), torch.ones(PIECES)
    seen.norms = list(series.get("norm", level)[:, None].double())
    seen.times = series.get("times", level).tolist()
    seen.sizes = series.get("size", 64 * level).int().tolist()
    seen.held = series.get("held", 1000 * MIB * level)[::EVERY].int().tolist()
    return seen


def ramp(end: float) -> torch.Tensor:
    return torch.linspace(1, end, PIECES)


def wandering() -> torch.Tensor:
    """Between 2 and 19, as the norm of a memory that reads the same token for ever."""
    steps = torch.randn(PIECES, generator=torch.Generator().manual_seed(0))
    return 10.5 + 8.5 * torch.sin(torch.arange(PIECES) / 3 + 0.3 * steps.cumsum(0))


def test_what_is_steady_passes() -> None:
    filling = 1 - torch.exp(-torch.arange(1, PIECES + 1) / 20)
    for seen in (watch(), watch(norm=filling)):
        seen.assert_steady(**ALLOWED)
        seen.assert_no_trend()
    assert (watch().found()["drift"], watch().found()["clearness"]) == ([0.0], [0.0])


@pytest.mark.parametrize(
    "series",
    [
        {"norm": ramp(1.2)},
        {"norm": 1 / ramp(1.2)},
        {"times": ramp(3)},
        {"size": 64 * ramp(2)},
        {"held": 1000 * MIB * torch.ones(PIECES) + ramp(10) * MIB},
    ],
    ids=["norm", "norm that fades", "time", "state", "process"],
)
def test_what_grows_does_not(series: dict[str, torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        watch(**series).assert_steady(**ALLOWED)


def test_a_norm_that_wanders_has_no_trend_and_one_that_wanders_off_has() -> None:
    watch(norm=wandering()).assert_no_trend()
    with pytest.raises(AssertionError, match="drifts by"):
        watch(norm=wandering() * torch.linspace(0, 4, PIECES).exp()).assert_no_trend()
