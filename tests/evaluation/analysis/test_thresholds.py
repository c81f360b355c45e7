"""Thresholds, confusion matrix and calibration worked out by hand."""

import numpy as np
import pytest

from detection.evaluation.analysis import thresholds
from detection.evaluation.analysis.error_types import MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from tests.evaluation.scenes import NUM_CLASSES, MakeIndex, one_error_of_each_type, random_split


def test_confusion_by_hand(make_index: MakeIndex) -> None:
    matrix = thresholds.confusion_matrix(*one_error_of_each_type(make_index), 0.5)
    # rows: actual class 0, 1, background; columns: predicted class 0, 1, missed
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 2], [3, 0, 0]]
    assert thresholds.confusion_matrix(*one_error_of_each_type(make_index), 0.9).tolist() == [
        [1, 0, 1],
        [0, 0, 3],
        [0, 0, 0],
    ]


def test_best_f1_by_hand(make_index: MakeIndex) -> None:
    overlaps, result, _ = one_error_of_each_type(make_index)
    best = thresholds.sweeps(overlaps, result)[0].best
    assert best.score == pytest.approx(0.95)  # all other detections are false positives
    assert (best.precision, best.recall, best.f1) == pytest.approx((1, 1 / 5, 2 / 6))
    sweep = thresholds.sweeps(overlaps, result)[1][1]
    assert sweep.recall[0] == sweep.precision[0] == 0
    assert np.isnan(sweep.precision[50])  # class 1 has no detection above 0.5


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_of_all_scores(seed: int) -> None:
    overlaps = Overlaps.of(*random_split(seed), NUM_CLASSES)
    result = MatchResult.of(overlaps, match(overlaps))
    best = thresholds.sweeps(overlaps, result)[0].best
    some, objects = result.true_positive | result.false_positive, result.counted.sum()
    tried = {
        score: 2
        * (result.true_positive & (overlaps.predictions.scores >= score)).sum()
        / ((some & (overlaps.predictions.scores >= score)).sum() + objects)
        for score in overlaps.predictions.scores[some].tolist()
    }
    assert best.f1 == pytest.approx(max(tried.values()))
    assert best.score == max(score for score, f1 in tried.items() if f1 == max(tried.values()))


def test_calibration_by_hand(make_index: MakeIndex) -> None:
    overlaps, result, _ = one_error_of_each_type(make_index)
    calibration = thresholds.calibrate(overlaps, result)
    assert calibration.detections.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert calibration.precision[4:].tolist() == [0, 0, 0, 0, 0, 1]
    assert calibration.error == pytest.approx((0.45 + 0.55 + 0.65 + 0.75 + 0.85 + 0.05) / 6, abs=1e-6)
