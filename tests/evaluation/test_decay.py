"""Curves of forgetting against curves that are known, and half-lives that were not reached."""

import math

import numpy as np
import pytest

from neuralmem.evaluation.decay import fit, half_life

DISTANCES = [32.0 * 2**k for k in range(9)]  # to 8,192


def test_a_power_law_is_told_from_an_exponential() -> None:
    law = [0.8 * (1 + d / 50) ** -0.5 for d in DISTANCES]
    [power], [exponential] = (fit(form, DISTANCES, [law]) for form in ("power law", "exponential"))
    assert power.error < 0.01 < exponential.error
    assert power.half_life == pytest.approx(150, rel=0.2), "50 (2^2 - 1)"
    decay = [0.8 * 2 ** (-d / 300) for d in DISTANCES]
    [power], [exponential] = (fit(form, DISTANCES, [decay]) for form in ("power law", "exponential"))
    assert exponential.error < 0.01
    assert exponential.half_life == pytest.approx(300, rel=0.05)


def draws(shares: list[float], texts: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((texts, len(shares))) < np.array(shares)).astype(float)


def test_the_interval_holds_the_true_half_life() -> None:
    truth, chance = 500.0, 0.1
    shares = [chance + (1 - chance) * 2 ** (-d / truth) for d in DISTANCES]
    held = 0
    for seed in range(20):
        _, life = half_life("exponential", DISTANCES, draws(shares, 60, seed), chance, draws=200)
        held += life.low <= truth <= life.high
        assert life.high / life.low < 3
    assert held >= 16, "95% of 20 is 19"


def test_what_is_not_reached_is_not_made_up() -> None:
    for form in ("exponential", "power law"):
        _, life = half_life(form, DISTANCES, draws([1.0] * 9, 30, 0), 0.0, draws=100)
        assert all(math.isinf(x) for x in life)
        _, life = half_life(form, DISTANCES, draws([0.0] * 9, 30, 0), 0.0, draws=100)
        assert all(math.isnan(x) for x in life)
        slow = [2 ** (-d / 20_000) for d in DISTANCES]
        _, life = half_life(form, DISTANCES, draws(slow, 400, 0), 0.0, draws=100)
        assert math.isinf(life.tokens)
