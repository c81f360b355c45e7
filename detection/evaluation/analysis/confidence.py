"""Confidence intervals of a score from its values on resampled images.

AP of few images is biased upward: precision is made monotone and read at 101 recalls. Images drawn with replacement
are fewer different images, so their AP is biased again. The middle 95 % of the rounds (`percentile`) therefore lie
too high; the other methods correct for the bias in different ways, and `wilson` starts from an estimate without it.
`benchmarks.intervals` measures how often the interval of each contains the score on all images; the table is in
RESULTS.md.

Letters: C classes, S rounds.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE_LEVEL = 0.95
TAILS = ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(TAILS[1])
"""Standard deviations on each side of a normal distribution's interval."""

Values = NDArray[np.float64]


def percentile(_: float, rounds: Values) -> tuple[float, float]:
    """Middle 95 % of the rounds (Efron 1979); right for paired differences, whose biases cancel."""
    low, high = np.quantile(rounds, TAILS).tolist()
    return low, high


def basic(value: float, rounds: Values) -> tuple[float, float]:
    """Percentiles mirrored at the score: `2 value - high` to `2 value - low` (Davison and Hinkley 1997)."""
    low, high = percentile(value, rounds)
    return 2 * value - high, 2 * value - low


def normal(value: float, rounds: Values) -> tuple[float, float]:
    """Score minus the bias of the rounds, plus and minus 1.96 of their standard deviations."""
    center, half = 2 * value - float(rounds.mean()), Z * float(rounds.std())
    return center - half, center + half


def bca(value: float, rounds: Values, jackknife: Values) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles (Efron 1987).

    Args:
        value: Score on all images.
        rounds: [S] scores on drawn images.
        jackknife: Scores with each image left out.
    """
    below = (np.sum(rounds < value) + np.sum(rounds == value) / 2) / len(rounds)
    z0 = NORMAL.inv_cdf(min(max(below, 0.5 / len(rounds)), 1 - 0.5 / len(rounds)))
    influence = jackknife.mean() - jackknife
    spread = float(np.sum(influence**2))
    acceleration = float(np.sum(influence**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    edges = []
    for z in (-Z, Z):
        shifted = z0 + z
        edges.append(NORMAL.cdf(z0 + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(rounds, edges).tolist()
    return low, high


def wilson(unbiased: Values, freedom: float, images: int) -> tuple[float, float]:
    """Wilson's interval of a proportion (1927) with the effective number of images and Student's t.

    The effective number is that of a proportion with the same variance. It takes the place of the number of draws, as
    in surveys with clusters (Korn and Graubard 1998), so that the interval is asymmetric and stays between 0 and 1.

    Args:
        unbiased: [1 + S] estimates without the bias of few images: of all images, then of each half.
        freedom: Degrees of freedom of the variance.
        images: Images with objects; the effective number where the halves do not differ.
    """
    from scipy.special import stdtrit

    value, halves = float(unbiased[0]), unbiased[1:][~np.isnan(unbiased[1:])]
    if np.isnan(value) or len(halves) < 2:
        return np.nan, np.nan
    variance = float(halves.var(ddof=1))
    count = value * (1 - value) / variance if variance > 0 and 0 < value < 1 else float(images)
    t = float(stdtrit(freedom, TAILS[1]))
    center = (value + t * t / (2 * count)) / (1 + t * t / count)
    half = t / (1 + t * t / count) * float(np.sqrt(value * (1 - value) / count + t * t / (4 * count * count)))
    return max(center - half, 0.0), min(center + half, 1.0)


def degrees_of_freedom(images: NDArray[np.int64]) -> float:
    """Degrees of freedom of the variance of a mean over classes (Welch 1947).

    The variance of a class falls with its number of images; a class in one image counts as one degree of freedom.

    Args:
        images: [C] number of images that hold each class.
    """
    known = images[images > 0].astype(np.float64)
    if not len(known):
        return 1.0
    return float(np.sum(1 / known) ** 2 / np.sum(1 / (known**2 * np.maximum(known - 1, 1))))


def two_sided_p(value: float, spread: float, freedom: int) -> float:
    """Probability of a difference this far from 0 by chance, by Student's t; 1 without a degree of freedom."""
    from scipy.special import stdtr

    if freedom < 1 or value == 0:
        return 1.0
    return float(2 * stdtr(freedom, -abs(value) / spread)) if spread > 0 else 0.0


METHODS: dict[str, Callable[[float, Values], tuple[float, float]]] = {
    "percentile": percentile,
    "basic": basic,
    "normal": normal,
}
"""Methods that need the score and the rounds alone."""


def interval(method: str, value: float, rounds: Values) -> tuple[float, float]:
    """Interval of a score between 0 and 1 by a method of `METHODS`; NaN if no round has a value.

    Args:
        method: Name of the method.
        value: Score on all images.
        rounds: [S] scores on resampled images; NaN where a round has none.
    """
    known = rounds[~np.isnan(rounds)]
    if not len(known) or np.isnan(value):
        return np.nan, np.nan
    low, high = METHODS[method](value, known)
    return min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
