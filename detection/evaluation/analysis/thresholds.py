"""Precision, recall, F1 and confusion matrix over score thresholds, and calibration of the scores.

All at IoU 0.5 with COCO's matching. A score threshold only cuts the end of that matching, so one matching
serves all thresholds.

Letters: D detections, T objects, C classes, S thresholds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.analysis.error_types import FOREGROUND_IOU, CrossClassPairs, MatchResult
from detection.evaluation.protocol.overlaps import Overlaps, argsort_descending

CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdMetrics:
    """Metrics at one score threshold; NaN without detections or objects."""

    score: float
    """Lowest score that is kept."""
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Precision, recall and F1 over the score threshold."""

    scores: NDArray[np.float64]
    """[S] thresholds, ascending."""
    precision: NDArray[np.float64]
    """[S] precision; NaN without detections."""
    recall: NDArray[np.float64]
    """[S] recall; NaN without objects."""
    f1: NDArray[np.float64]
    """[S] harmonic mean of precision and recall."""
    best: ThresholdMetrics
    """Greatest F1 over all scores of the detections; of equals, the highest score."""


def sweeps(overlaps: Overlaps, result: MatchResult) -> tuple[Sweep, list[Sweep]]:
    """Metrics at 101 thresholds from 0 to 1, or from lowest to highest score if scores lie outside of [0, 1].

    Args:
        overlaps: Scores and classes.
        result: True and false positives.

    Returns:
        Sweep over all detections (micro-averaged), and [C] sweep of each class.
    """
    predictions = overlaps.predictions
    order = np.flatnonzero(result.true_positive | result.false_positive)
    order = order[argsort_descending(predictions.scores[order])[::-1]]
    scores, true_positive, labels = (predictions.scores[order], result.true_positive[order], predictions.labels[order])
    low, high = (0.0, 1.0) if _in_unit_interval(scores) else (scores[0], scores[-1])
    grid = np.linspace(low, high, 101)
    objects = np.bincount(overlaps.ground_truth.labels[result.counted], minlength=overlaps.num_classes)
    by_class = np.argsort(labels, kind="stable")
    parts = np.split(by_class, np.searchsorted(labels[by_class], np.arange(1, overlaps.num_classes)))
    per_class = [
        _sweep(grid, scores[part], true_positive[part], int(count))
        for part, count in zip(parts, objects, strict=False)  # without classes numpy returns one part
    ]
    return _sweep(grid, scores, true_positive, int(objects.sum())), per_class


def _sweep(
    grid: NDArray[np.float64], scores: NDArray[np.float64], true_positive: NDArray[np.bool_], objects: int
) -> Sweep:
    candidates = np.unique(scores)
    _, _, f1 = _metrics(candidates, scores, true_positive, objects)
    score = candidates[len(candidates) - 1 - np.argmax(f1[::-1])] if len(candidates) else np.nan
    at_best = (float(value[0]) for value in _metrics(np.array([score]), scores, true_positive, objects))
    best = ThresholdMetrics(score=float(score), **dict(zip(("precision", "recall", "f1"), at_best, strict=True)))
    precision, recall, f1 = _metrics(grid, scores, true_positive, objects)
    return Sweep(scores=grid, precision=precision, recall=recall, f1=f1, best=best)


def _metrics(
    thresholds: NDArray[np.float64], scores: NDArray[np.float64], true_positive: NDArray[np.bool_], objects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 at some thresholds; `scores` ascend."""
    cut = np.searchsorted(scores, thresholds, side="left")
    kept = len(scores) - cut
    true = np.concatenate([np.cumsum(true_positive[::-1])[::-1], [0]])[cut]
    return _ratio(true, kept), _ratio(true, np.full(len(cut), objects)), _ratio(2 * true, kept + objects)


def confusion_matrix(
    overlaps: Overlaps, result: MatchResult, cross_class: CrossClassPairs, score: float
) -> NDArray[np.int64]:
    """Confusion matrix of the detections with at least a score.

    True positives are on the diagonal. Then, in order of descending score, each false positive takes the free
    object of another class with the greatest IoU of at least 0.5.

    Returns:
        [C + 1, C + 1] counts, actual class by predicted class. The last column holds missed objects; the
        last row holds detections on the background or on an object that is taken. A row adds up to the
        objects of a class, a column to its detections.
    """
    num_classes, labels, actual = (overlaps.num_classes, overlaps.predictions.labels, overlaps.ground_truth.labels)
    kept = overlaps.predictions.scores >= score
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    true = kept & result.true_positive
    np.add.at(matrix, (labels[true], labels[true]), 1)
    free = kept & result.false_positive
    taken = ~result.counted
    taken[result.object[true]] = True

    pairs = np.flatnonzero((cross_class.iou >= FOREGROUND_IOU) & free[cross_class.detection])
    detection, objects = cross_class.detection[pairs], cross_class.object[pairs]
    descending = -overlaps.predictions.scores[detection]
    order = np.lexsort((objects, -cross_class.iou[pairs], detection, descending))
    for d, t in zip(detection[order].tolist(), objects[order].tolist(), strict=True):
        if free[d] and not taken[t]:
            free[d], taken[t] = False, True
            matrix[actual[t], labels[d]] += 1
    matrix[num_classes, :-1] = np.bincount(labels[free], minlength=num_classes)
    matrix[:-1, num_classes] = np.bincount(actual[~taken], minlength=num_classes)
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Reliability of the scores: in a calibrated detector, precision equals the score."""

    low: NDArray[np.float64]
    """[`CALIBRATION_BINS`] lower edges of the score bins."""
    detections: NDArray[np.int64]
    """[`CALIBRATION_BINS`] number of detections."""
    score: NDArray[np.float64]
    """[`CALIBRATION_BINS`] mean score; NaN in an empty bin."""
    precision: NDArray[np.float64]
    """[`CALIBRATION_BINS`] fraction of true positives; NaN in an empty bin."""
    error: float
    """Expected calibration error (Guo et al. 2017, equation 3); NaN without detections or if scores lie
    outside of [0, 1]."""


def calibrate(overlaps: Overlaps, result: MatchResult) -> Calibration:
    """Compare scores with precision, over detections that are true or false positives."""
    order = np.flatnonzero(result.true_positive | result.false_positive)
    scores = overlaps.predictions.scores[order]
    if not _in_unit_interval(scores):
        order, scores = order[:0], scores[:0]
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    mean = _ratio(np.bincount(bins, scores, CALIBRATION_BINS), count)
    precision = _ratio(np.bincount(bins, result.true_positive[order], CALIBRATION_BINS), count)
    some = count > 0
    gap = np.abs(mean - precision)[some]
    error = float(np.average(gap, weights=count[some])) if len(order) else float("nan")
    low = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    return Calibration(low=low, detections=count, score=mean, precision=precision, error=error)


def _in_unit_interval(scores: NDArray[np.float64]) -> bool:
    return bool(np.all((scores >= 0) & (scores <= 1)))


def _ratio(part: NDArray[np.generic], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """`part / whole`, NaN where `whole` is 0."""
    result: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return result
