"""Intervals cover what they say."""

import math

import numpy as np
import pytest

from neuralmem.evaluation.stats import clustered, wilson


@pytest.mark.parametrize(("texts", "least"), [(30, 0.93), (8, 0.91)])
@pytest.mark.parametrize("alike", [1.0, 0.3])
def test_answers_of_one_text_count_as_what_they_tell_together(texts: int, least: float, alike: float) -> None:
    """By simulation: the intervals cover the truth, plain ones do not. `alike`: the correlation within a text."""
    random, truth, keys, draws = np.random.default_rng(0), 0.6, 8, 1000
    covered = {"clustered": 0, "plain": 0}
    for _ in range(draws):
        rest = 1 / alike - 1
        share = random.beta(truth * rest, (1 - truth) * rest, texts) if rest else random.random(texts) < truth
        hits = random.binomial(keys, share).tolist()
        for name, found in (("clustered", clustered(hits, [keys] * texts)), ("plain", wilson(sum(hits), keys * texts))):
            covered[name] += found.low <= truth <= found.high
    assert covered["clustered"] > least * draws
    assert covered["plain"] < 0.8 * draws


def test_answers_that_do_not_hang_together_have_the_plain_interval() -> None:
    for hits, sizes in (([4, 4, 4], [8] * 3), ([8, 8, 8], [8] * 3), ([3], [8]), ([0, 0], [8, 8])):
        assert clustered(hits, sizes) == wilson(sum(hits), sum(sizes))
    assert math.isnan(clustered([], []).share)
