"""Curves of forgetting: an exponential and a power law fitted to shares over distance, and the half-life they say.

Special: least squares on a grid, so that there is no start to choose and no way not to converge; intervals come from
drawing the texts again with replacement. A half-life beyond the longest distance that was measured is not extrapolated:
it is infinite here, and reported as not reached.
Source: the forms are those of Ebbinghaus and of Wickelgren (1974), m (1 + t / s)^-b.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GRID, STEPS = 240, 40  # half-lives of the exponential; scales, and exponents, of the power law


class Fit(NamedTuple):
    """A curve level * f(distance).

    Args:
        form: "exponential", 2^(-d / half_life), or "power law", (1 + d / scale)^-exponent
        level: at distance 0, 0 to 1
        scale: half-life of the exponential, s of the power law, in tokens
        exponent: of the power law; 1 for the exponential
        error: root of the mean square of what is left, in shares
    """

    form: str
    level: float
    scale: float
    exponent: float
    error: float

    @property
    def half_life(self) -> float:
        """Tokens after which half of the level is left."""
        if self.form == "exponential":
            return self.scale
        return self.scale * math.expm1(math.log(2) / self.exponent)

    def at(self, distance: float) -> float:
        """Its value there."""
        return self.level * _curve(self.form, distance, self.scale, self.exponent)


def _curve(form: str, distance: np.ndarray | float, scale: np.ndarray | float, exponent: np.ndarray | float):  # type: ignore[no-untyped-def]
    if form == "exponential":
        return np.exp2(-np.divide(distance, scale))
    return np.power(1 + np.divide(distance, scale), np.negative(exponent))


def _grid(form: str, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and exponents to be tried, Float[G] each: from below the shortest distance to far above the longest."""
    low, high = distances.min() / 8, distances.max() * 64
    if form == "exponential":
        scales = np.geomspace(low, high, GRID)
        return scales, np.ones_like(scales)
    scales, exponents = np.geomspace(low, high, STEPS), np.geomspace(0.01, 8, STEPS)
    return (x.ravel() for x in np.meshgrid(scales, exponents))  # type: ignore[return-value]


def fit(form: str, distances: Sequence[float], shares: Sequence[Sequence[float]] | np.ndarray) -> list[Fit]:
    """The best curve for each row of shares.

    Args:
        form: "exponential" or "power law"
        distances: [P] in tokens
        shares: [N, P]

    Example:
        >>> d = [16, 32, 64, 128, 256, 512]
        >>> [found] = fit("exponential", d, [[0.9 * 2 ** (-x / 100) for x in d]])
        >>> abs(found.half_life - 100) < 3, abs(found.level - 0.9) < 0.02, found.error < 0.005
        (True, True, True)
    """
    x, y = np.asarray(distances, float), np.asarray(shares, float)
    scales, exponents = _grid(form, x)
    curves = _curve(form, x, scales[:, None], exponents[:, None])  # [G, P]
    levels = np.clip(y @ curves.T / np.square(curves).sum(1), 0, 1)  # [N, G], the best level of each
    errors = np.square(y).sum(1)[:, None] - 2 * levels * (y @ curves.T) + np.square(levels) * np.square(curves).sum(1)
    best = errors.argmin(1)
    rows = np.arange(len(y))
    left = np.sqrt(np.maximum(errors[rows, best], 0) / len(x))
    return [
        Fit(form, float(levels[i, g]), float(scales[g]), float(exponents[g]), float(left[i]))
        for i, g in zip(rows, best, strict=True)
    ]


class HalfLife(NamedTuple):
    """Tokens, `inf` where it is not reached within the longest distance, NaN where nothing was recalled."""

    tokens: float
    low: float
    high: float


def half_life(
    form: str, distances: Sequence[float], exact: np.ndarray, chance: float, draws: int = 1000, seed: int = 0
) -> tuple[Fit, HalfLife]:
    """The curve through mean shares above chance, and its half-life with a 95% interval.

    Args:
        form: see `Fit`
        distances: [P] in tokens
        exact: [N, P] share of exact answers of each text at each distance
        chance: share that a guess gets; what is above it is scaled to 0..1
        draws: of the bootstrap
        seed: of the bootstrap
    """
    above = (exact - chance) / (1 - chance)
    rng = np.random.default_rng(seed)
    drawn = above[rng.integers(0, len(above), (draws, len(above)))].mean(1)  # [draws, P]
    [found] = fit(form, distances, [above.mean(0)])
    several = [_within(x, distances) for x in fit(form, distances, drawn)]
    known = sorted(x for x in several if not math.isnan(x))
    if not known or math.isnan(_within(found, distances)):
        return found, HalfLife(math.nan, math.nan, math.nan)
    low, high = (known[round(q * (len(known) - 1))] for q in (0.025, 0.975))
    return found, HalfLife(_within(found, distances), low, high)


def _within(found: Fit, distances: Sequence[float]) -> float:
    """The half-life, if there is one and it was reached."""
    if found.level <= 0 or found.at(min(distances)) < 0.01:
        return math.nan
    return found.half_life if found.half_life <= max(distances) else math.inf
