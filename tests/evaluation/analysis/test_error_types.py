"""Error types and their gains on hand-made cases, and sums that hold on generated splits."""

import numpy as np
import pytest

from detection.evaluation.analysis import error_types, thresholds
from detection.evaluation.analysis.error_types import ERROR_TYPES, CrossClassPairs, MatchResult
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from tests.evaluation.scenes import NUM_CLASSES, MakeIndex, one_error_of_each_type, random_split


def test_each_type(make_index: MakeIndex) -> None:
    overlaps, result, cross_class = one_error_of_each_type(make_index)
    errors = error_types.analyze(overlaps, result, cross_class)
    given = np.argsort(overlaps.detection_order)
    names = [ERROR_TYPES[k] if k >= 0 else "-" for k in errors.types[given]]
    assert names == ["-", "duplicate", "localization", "classification", "both", "background", "-"]
    assert errors.counts == {
        "classification": 1,
        "localization": 1,
        "both": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 2,  # the fourth and fifth; the second and third are targets of errors
        "false_positives": 5,
        "false_negatives": 4,
    }


def test_gains_by_hand(make_index: MakeIndex) -> None:
    """Class 0 has 2 objects and class 1 has 3; precision is read at 101 recalls."""
    errors = error_types.analyze(*one_error_of_each_type(make_index))
    half, third = 51 / 101, 34 / 101  # recalls up to 1/2, and up to 1/3
    assert errors.ap50 == pytest.approx(half / 2)  # class 0: one of two at precision 1; class 1: none
    gains = {name: value + half / 2 for name, value in errors.gains.items()}
    assert gains["classification"] == pytest.approx((half + third) / 2)  # highest score of class 1
    # TP, FP (duplicate), TP: precision 1 up to 1/2, then 2/3
    assert gains["localization"] == pytest.approx((half + (1 - half) * 2 / 3) / 2)
    for name in ("both", "duplicate", "background", "false_positives"):
        assert errors.gains[name] == pytest.approx(0)
    assert gains["missed"] == pytest.approx(half / 2)  # class 1 still misses its third
    # Class 1 has no objects left, but its detection on the background stays a false positive.
    assert gains["false_negatives"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("seed", range(30))
def test_sums_hold(seed: int) -> None:
    overlaps = Overlaps.of(*random_split(seed), NUM_CLASSES)
    matches = match(overlaps)
    result = MatchResult.of(overlaps, matches)
    cross_class = CrossClassPairs.of(overlaps, result)
    errors = error_types.analyze(overlaps, result, cross_class)
    stats = coco_metrics.score_matches(overlaps, matches).stats
    assert errors.ap50 == pytest.approx(stats["AP50"], abs=1e-12, nan_ok=True)
    counts = errors.counts
    assert sum(counts[name] for name in ERROR_TYPES) == counts["false_positives"]
    assert result.true_positive.sum() + counts["false_negatives"] == result.counted.sum()
    assert counts["missed"] <= counts["false_negatives"]
    if not np.isnan(errors.ap50):
        assert min(errors.gains["missed"], errors.gains["false_positives"]) >= -1e-12
        everything = error_types.WhatIf(overlaps, result)
        undetected = result.counted & ~result.detected
        assert everything.ap50(removed=result.false_positive, removed_objects=undetected) == pytest.approx(1)

    for threshold in (0.0, 0.5, thresholds.sweeps(overlaps, result)[0].best.score):
        matrix = thresholds.confusion_matrix(overlaps, result, cross_class, threshold)
        kept = overlaps.predictions.scores >= threshold
        objects = np.bincount(overlaps.ground_truth.labels[result.counted], minlength=NUM_CLASSES)
        predicted = np.bincount(
            overlaps.predictions.labels[kept & (result.true_positive | result.false_positive)], minlength=NUM_CLASSES
        )
        assert matrix[:-1].sum(axis=1).tolist() == objects.tolist()
        assert matrix[:, :-1].sum(axis=0).tolist() == predicted.tolist()
        assert np.trace(matrix) == (kept & result.true_positive).sum()


@pytest.mark.parametrize("seed", range(0, 20, 2))  # with even seeds all scores differ
def test_fixed_detections_move_to_the_class_of_their_target(seed: int) -> None:
    overlaps = Overlaps.of(*random_split(seed), NUM_CLASSES)
    result = MatchResult.of(overlaps, match(overlaps))
    rng = np.random.default_rng(seed)
    false = np.flatnonzero(result.false_positive)
    undetected = np.flatnonzero(result.counted & ~result.detected)
    count = min(len(false), len(undetected))
    fixed = rng.permutation(false)[:count]
    target = np.full(len(result.false_positive), -1)
    target[fixed] = rng.permutation(undetected)[:count]
    gone = rng.random(len(result.false_positive)) < 0.3
    removed = result.false_positive & (gone | np.isin(np.arange(len(gone)), fixed))

    rows = [(r, overlaps.predictions.labels[r], result.true_positive[r]) for r in np.flatnonzero(result.true_positive)]
    rows += [(r, overlaps.predictions.labels[r], False) for r in false if not removed[r]]
    rows += [(r, overlaps.ground_truth.labels[target[r]], True) for r in fixed]
    rows.sort(key=lambda row: -overlaps.predictions.scores[row[0]])
    values = []
    for label in np.unique(overlaps.ground_truth.labels[result.counted]):
        true = np.cumsum([correct for _, predicted, correct in rows if predicted == label])
        recall = true / np.sum(result.counted & (overlaps.ground_truth.labels == label))
        precision = true / np.arange(1, len(true) + 1)
        best = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
        values.append(np.mean(best))
    expected = np.mean(values) if values else np.nan
    fixed_ap = error_types.WhatIf(overlaps, result).ap50(removed=removed, fixed=fixed, target=target)
    assert fixed_ap == pytest.approx(expected, abs=1e-12, nan_ok=True)
