"""Intervals and null models: what a score says, and what it would be without a memory.

Special: an interval that stays inside [0, 1] and is right at 0% and 100%, where needle scores often are.
Source: Wilson 1927; the null model is evaluation.md section 1, finding 3 (a window of w tokens finds w / length of
uniformly placed needles, and several published rows are exactly that), here of the needles as they really stand.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution


class Share(NamedTuple):
    """Successes among trials, with the ends of a 95% interval; `share` is NaN when there were no trials."""

    hits: float
    n: int
    share: float
    low: float
    high: float


def wilson(hits: float, n: int, z: float = Z95) -> Share:
    """The Wilson score interval of a proportion.

    `hits` may be a sum of scores between 0 and 1: their variance is at most that of a proportion with the same mean, so
    the interval is then rather too wide than too narrow.

    Example:
        >>> [round(x, 4) for x in wilson(95, 100)[2:]]
        [0.95, 0.8882, 0.9785]
        >>> wilson(20, 20).high
        1.0
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits is {hits}; it must lie between 0 and n = {n}")
    if n == 0:
        return Share(0, 0, math.nan, 0.0, 1.0)
    p, s = hits / n, z * z / n
    centre = (p + s / 2) / (1 + s)
    half = z * math.sqrt((p * (1 - p) + s / 4) / n) / (1 + s)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Share(hits, n, p, low, high)


def share_within(reach: int, length: int, needles: Sequence[Sequence[int]]) -> float:
    """Share of needles, (start, stop) each, that stand within the last `reach` tokens of `length`.

    Example:
        >>> share_within(reach=1024, length=4096, needles=[(100, 120), (3060, 3080)])
        0.5
    """
    return sum(length - stop <= reach for _, stop in needles) / len(needles)
