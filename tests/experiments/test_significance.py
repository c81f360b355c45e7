"""Stars of classes, corrected for their number."""

import numpy as np

from detection.evaluation.analysis import confidence
from detection.evaluation.analysis.bootstrap import Difference
from detection.experiments.comparison import sign, significant


def difference(value: float, spread: float = 0.1) -> Difference:
    p_value = confidence.two_sided_p(value, spread, 200)
    return Difference(value, value - 1.96 * spread, value + 1.96 * spread, 0.5, p_value)


def test_few_of_eighty_equal_classes_are_marked() -> None:
    rng = np.random.default_rng(0)
    single, marked = 0, 0
    for _ in range(50):
        gains = [difference(value) for value in rng.normal(0, 0.1, 80)]
        single += sum(map(abs, map(sign, gains)))
        marked += any(significant(gains))
    assert single > 100, "intervals exclude 0 in 5 % of 4,000 classes"
    assert marked <= 7, "stars in some 5 % of 50 comparisons"


def test_clear_gains_are_marked() -> None:
    gains = [difference(0.5), difference(0.0), difference(0.21), difference(-0.6), Difference(*[float("nan")] * 5)]
    assert significant(gains) == [True, False, False, True, False]
    assert significant([difference(0.21)]) == [True]
    assert significant([]) == []
