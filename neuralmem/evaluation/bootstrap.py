"""Bootstrap intervals over documents: how far a mean could be off had other documents been drawn.

Special: documents are drawn, not tokens, since the losses of one document hang together; a mean is weighted by tokens
and a difference is taken within each document before it is drawn, so that what makes a document hard cancels.
Source: Efron 1979, the percentile interval. With few documents it is too narrow; n is given with every interval.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
_BLOCK = 1 << 22  # draws held at once


class Mean(NamedTuple):
    """A weighted mean and the ends of its 95% interval, which are NaN where one document leaves nothing to draw."""

    value: float
    low: float
    high: float
    n: int


def weighted_mean(sums: Sequence[float], counts: Sequence[float], seed: int = 0) -> Mean:
    """sum(sums) / sum(counts), with an interval over the pairs; pairs whose count is 0 are left out.

    Args:
        sums: of every document, for example its loss in nats
        counts: of every document, for example its tokens
        seed: of the resampling

    Example:
        >>> weighted_mean([2.0, 2.0, 8.0], [1, 1, 4])
        Mean(value=2.0, low=2.0, high=2.0, n=3)
        >>> weighted_mean([3.0], [2]).value
        1.5
    """
    pairs = np.array([(s, c) for s, c in zip(sums, counts, strict=True) if c], dtype=np.float64).reshape(-1, 2)
    n = len(pairs)
    if not n:
        return Mean(math.nan, math.nan, math.nan, 0)
    value = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    if n == 1:
        return Mean(value, math.nan, math.nan, 1)
    random, means = np.random.default_rng(seed), []
    step = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(n, size=(min(step, RESAMPLES - start), n))
        total = pairs[drawn].sum(1)
        means.append(total[:, 0] / total[:, 1])
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Mean(value, float(low), float(high), n)
