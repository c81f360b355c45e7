"""Methods of confidence intervals that `benchmarks.intervals` compares with those of the project."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from detection.evaluation.analysis.confidence import TAILS, Values, percentile

NORMAL = NormalDist()
Z = NORMAL.inv_cdf(TAILS[1])
"""Standard deviations on each side of a normal distribution's interval."""


def basic(value: float, rounds: Values) -> tuple[float, float]:
    """Percentiles mirrored at the score: `2 value - high` to `2 value - low` (Davison and Hinkley 1997)."""
    low, high = percentile(rounds)
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


METHODS: dict[str, Callable[[float, Values], tuple[float, float]]] = {
    "percentile": lambda _, rounds: percentile(rounds),
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
