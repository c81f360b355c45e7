"""Confidence intervals of a score from its values on resampled images.

AP of few images is biased upward: precision is made monotone and read at 101 recalls. Images drawn with replacement
are fewer different images, so their AP is biased again. The middle 95 % of the rounds (`percentile`) therefore lie
too high; `wilson` starts from an estimate without that bias. `benchmarks.intervals` measures how often the interval of
these and other methods contains the score on all images; the table is in RESULTS.md.

Letters: C classes, S rounds.
"""

import numpy as np
from numpy.typing import NDArray

CONFIDENCE_LEVEL = 0.95
TAILS = ((1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2)

Values = NDArray[np.float64]


def percentile(rounds: Values) -> tuple[float, float]:
    """Middle 95 % of the rounds (Efron 1979); right for paired differences, whose biases cancel."""
    low, high = np.quantile(rounds, TAILS).tolist()
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
