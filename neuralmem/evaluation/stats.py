"""Intervals and null models: what a score says, and what it would be without a memory.

Special: an interval that stays inside [0, 1] and is right at 0% and 100%, where needle scores often are.
Source: Wilson 1927; the null model is evaluation.md section 1, finding 3 (a window of w tokens finds w / length of
uniformly placed needles, and several published rows are exactly that), here of the needles as they really stand.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
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
    return Share(hits, n, hits / n, *_ends(hits / n, n, z))


def _ends(p: float, n: float, z: float = Z95) -> tuple[float, float]:
    s = z * z / n
    centre = (p + s / 2) / (1 + s)
    half = z * math.sqrt((p * (1 - p) + s / 4) / n) / (1 + s)
    return 0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half)


def clustered(hits: Sequence[float], sizes: Sequence[int]) -> Share:
    """The Wilson interval of a proportion whose trials come in groups that hang together, as answers of one text do.

    The trials count as so many fewer as their variance over groups is larger than it would be of independent ones, and
    fewer still where few groups tell that variance; `n` is their number all the same. At 0% and 100% groups tell
    nothing of it, and the interval is the plain one; with a handful of groups and near the ends it stays too narrow.
    Source: Korn and Graubard 1998, with Wilson's interval.

    Args:
        hits: successes of every group
        sizes: trials of every group

    Example:
        >>> alike, apart = clustered([8, 0, 8, 0], [8] * 4), clustered([4, 4, 4, 4], [8] * 4)
        >>> [round(x, 2) for x in alike[2:]], [round(x, 2) for x in apart[2:]]
        ([0.5, 0.06, 0.94], [0.5, 0.34, 0.66])
    """
    n, groups = sum(sizes), sum(size > 0 for size in sizes)
    whole = wilson(sum(hits), n)
    if groups < 2 or whole.share in (0, 1):
        return whole
    apart = sum((hit - whole.share * size) ** 2 for hit, size in zip(hits, sizes, strict=True))
    effect = apart * groups / (groups - 1) / (n * whole.share * (1 - whole.share))
    few = (student(groups - 1) / Z95) ** 2
    return Share(whole.hits, n, whole.share, *_ends(whole.share, n / max(1.0, effect * few)))


def student(freedom: int, z: float = Z95) -> float:
    """Student's quantile for the normal one: exact for 1 and 2 degrees of freedom, else by its expansion in 1 / freedom
    (Abramowitz and Stegun 26.7.5).

    Example:
        >>> [round(student(freedom), 2) for freedom in (1, 2, 7, 100)]
        [12.71, 4.3, 2.36, 1.98]
    """
    tail = 2 * NormalDist().cdf(z) - 1  # what lies between -z and z
    if freedom == 1:
        return math.tan(math.pi * tail / 2)
    if freedom == 2:
        return tail * math.sqrt(2 / (1 - tail**2))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def mean(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval, Student's; NaN for one number.

    Example:
        >>> mean([1.0, 3.0, 2.0, 2.0])
        (2.0, 1.28965354)
    """
    centre = sum(numbers) / len(numbers)
    if len(numbers) < 2:
        return centre, math.nan
    variance = sum((x - centre) ** 2 for x in numbers) / (len(numbers) - 1)
    return centre, round(student(len(numbers) - 1) * math.sqrt(variance / len(numbers)), 9)


def share_within(reach: int, length: int, needles: Sequence[Sequence[int]]) -> float:
    """Share of needles, (start, stop) each, that stand within the last `reach` tokens of `length`.

    Example:
        >>> share_within(reach=1024, length=4096, needles=[(100, 120), (3060, 3080)])
        0.5
    """
    return sum(length - stop <= reach for _, stop in needles) / len(needles)
