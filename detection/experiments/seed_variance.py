"""Mean, spread and the smallest difference that means anything, of a score over a few seeds.

Letters: n runs, s their standard deviation (n - 1 in the denominator).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedVariance:
    """What n runs say about the noise of a score."""

    runs: int
    mean: float
    deviation: float
    """Standard deviation without the bias that few runs give it: s / c4(n)."""
    between_runs: float
    """Two more single runs that differ in their seed alone differ by less in `LEVEL` of all cases."""
    between_means: float
    """The same for the means of two times n runs."""


def spread(values: Sequence[float]) -> SeedVariance:
    """Judge the noise of a score.

    The difference of two runs has the variance 2 sigma^2. As sigma is known through s alone, it is Student's
    t with n - 1 degrees of freedom that says how large it may be: t s sqrt(2). The means of two groups of n
    have 2 sigma^2 / n, and both groups' s together 2n - 2 degrees of freedom.

    Args:
        values: The score of each run, two or more.
    """
    from scipy.stats import t as student

    runs, s = len(values), float(np.std(values, ddof=1))
    tail = (1 + LEVEL) / 2
    return SeedVariance(
        runs=runs,
        mean=float(np.mean(values)),
        deviation=s / c4(runs),
        between_runs=float(student.ppf(tail, runs - 1)) * s * math.sqrt(2),
        between_means=float(student.ppf(tail, 2 * runs - 2)) * s * math.sqrt(2 / runs),
    )


def c4(runs: int) -> float:
    """Expected s of `runs` normal values, as a share of sigma; 0.798 for two, 0.940 for five."""
    return math.sqrt(2 / (runs - 1)) * math.exp(math.lgamma(runs / 2) - math.lgamma((runs - 1) / 2))
