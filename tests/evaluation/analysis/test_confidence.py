"""Intervals against textbook values."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from detection.evaluation.analysis import confidence


def test_wilson_interval_of_a_proportion() -> None:
    """Halves whose variance is that of 60 draws give the interval of 60 draws."""
    halves = np.tile([-1.0, 1], 500) * np.sqrt(0.4 * 0.6 / 60 * 999 / 1000) + 0.4
    low, high = confidence.wilson(np.array([0.4, *halves]), 1e9, 60)
    expected = binomtest(24, 60).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_equal_halves_count_as_so_many_images() -> None:
    expected = binomtest(20, 20).proportion_ci(method="wilson")
    assert confidence.wilson(np.ones(50), 1e9, 20) == pytest.approx((expected.low, 1), abs=1e-6)
    low, high = confidence.wilson(np.ones(50), 1, 1)
    assert low < 0.01, "one image says little"
    assert high == 1
    assert np.isnan(confidence.wilson(np.full(50, np.nan), 1, 0)).all()


def test_degrees_of_freedom() -> None:
    assert confidence.degrees_of_freedom(np.array([20])) == pytest.approx(19)
    assert confidence.degrees_of_freedom(np.array([20, 20, 0, 20])) == pytest.approx(3 * 19)
    assert confidence.degrees_of_freedom(np.array([1, 100])) < 1.1, "the rare class has nearly all of the variance"
    assert confidence.degrees_of_freedom(np.zeros(3, np.int64)) == 1


def test_two_sided_p_is_that_of_a_t_test() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 30)
    spread = float(values.std(ddof=1) / np.sqrt(30))
    assert confidence.two_sided_p(float(values.mean()), spread, 29) == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert confidence.two_sided_p(0.5, 0.1, 0) == 1
    assert confidence.two_sided_p(0.0, 0.0, 9) == 1
    assert confidence.two_sided_p(0.5, 0.0, 9) == 0
