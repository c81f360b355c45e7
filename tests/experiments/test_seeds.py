"""Statistics over seeds: by hand, and on simulated runs with a known variance."""

import numpy as np
import pytest

from detection.experiments.seeds import c4, seed_variance


def test_by_hand() -> None:
    one = seed_variance([0.50, 0.52, 0.54])
    assert one.mean == pytest.approx(0.52)
    assert one.deviation == pytest.approx(0.02 / 0.886227)
    assert one.between_runs == pytest.approx(4.302653 * 0.02 * 2**0.5)
    assert one.between_means == pytest.approx(2.776445 * 0.02 * (2 / 3) ** 0.5)


def test_the_bias_of_few_runs() -> None:
    assert [round(c4(n), 4) for n in (2, 5, 10, 400)] == [0.7979, 0.9400, 0.9727, 0.9994]


def test_the_deviation_is_unbiased_and_95_percent_of_pairs_differ_by_less() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(0.5, 0.01, (2000, 5))
    estimates = [seed_variance(row.tolist()) for row in runs]
    assert np.mean([one.deviation for one in estimates]) == pytest.approx(0.01, rel=0.02)
    pairs = np.abs(np.diff(rng.normal(0.5, 0.01, (2000, 2)))[:, 0])
    covered = np.mean(pairs < [one.between_runs for one in estimates])
    assert covered == pytest.approx(0.95, abs=0.015)
