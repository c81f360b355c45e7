"""What happens at a chosen score: precision, recall, F1, the confusion matrix; and what a score is worth.

All of it at IoU 0.5, with COCO's matching. A threshold on the score only cuts off the end of that matching,
so one matching serves all thresholds.

Letters: D detections, T objects, C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.analysis.error_types import FOREGROUND_IOU, CrossClassPairs, MatchResult
from detection.evaluation.protocol.ordering import falling
from detection.evaluation.protocol.overlaps import Overlaps

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One threshold and what it brings; NaN where nothing is detected or nothing is to be found."""

    score: float
    """Detections that score at least this are kept."""
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep:
    """Precision, recall and F1 over the score."""

    scores: NDArray[np.float64]
    """[S] thresholds, rising."""
    precision: NDArray[np.float64]
    """[S]; NaN where no detection is left."""
    recall: NDArray[np.float64]
    """[S]; NaN without objects."""
    f1: NDArray[np.float64]
    """[S]."""
    best: Point
    """Where F1 is greatest, at one of the detections' own scores; of equals the highest score."""


def sweeps(overlaps: Overlaps, result: MatchResult) -> tuple[Sweep, list[Sweep]]:
    """Walk along the score: from 0 to 1 in hundredths, or from least to greatest where scores lie elsewhere.

    Args:
        overlaps: For scores and classes.
        result: Right and wrong.

    Returns:
        Of all detections in one pot, and of each class.
    """
    rows = np.flatnonzero(result.true_positive | result.false_positive)
    rows = rows[falling(overlaps.predictions.scores[rows])[::-1]]
    scores, right, labels = (
        overlaps.predictions.scores[rows],
        result.true_positive[rows],
        overlaps.predictions.labels[rows],
    )
    low, high = (0.0, 1.0) if _is_share(scores) else (scores[0], scores[-1])
    grid = np.linspace(low, high, 101)
    objects = np.bincount(overlaps.ground_truth.labels[result.counted], minlength=overlaps.num_classes)
    by_class = np.argsort(labels, kind="stable")
    parts = np.split(by_class, np.searchsorted(labels[by_class], np.arange(1, overlaps.num_classes)))
    of_class = [
        _sweep(grid, scores[part], right[part], int(count))
        for part, count in zip(parts, objects, strict=False)  # numpy splits nothing into one part
    ]
    return _sweep(grid, scores, right, int(objects.sum())), of_class


def _sweep(
    grid: NDArray[np.float64], scores: NDArray[np.float64], right: NDArray[np.bool_], objects: int
) -> Sweep:
    own = np.unique(scores)
    _, _, f1 = _rates(own, scores, right, objects)
    at = own[len(own) - 1 - np.argmax(f1[::-1])] if len(own) else np.nan
    best = Point(score=float(at), **_named(_rates(np.array([at]), scores, right, objects)))
    precision, recall, f1 = _rates(grid, scores, right, objects)
    return Sweep(scores=grid, precision=precision, recall=recall, f1=f1, best=best)


def confusion_matrix(
    overlaps: Overlaps, result: MatchResult, cross_class: CrossClassPairs, score: float
) -> NDArray[np.int64]:
    """What objects are taken for by the detections that score at least `score`.

    Detections that find an object of their class stand on the diagonal. Then, best score first, each other
    one takes the free object of another class that it overlaps most, by 0.5 or more.

    Returns:
        [C + 1, C + 1], rows are what there is and columns what was said: in the last column objects that
        nothing was said of, in the last row detections on no object, or on one that was taken. A row sums up
        to the class's objects, a column to its detections.
    """
    classes, labels, actual = overlaps.num_classes, overlaps.predictions.labels, overlaps.ground_truth.labels
    kept = overlaps.predictions.scores >= score
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    right = kept & result.true_positive
    np.add.at(matrix, (labels[right], labels[right]), 1)
    wrong = kept & result.false_positive
    taken = ~result.counted
    taken[result.object[right]] = True

    pairs = np.flatnonzero((cross_class.iou >= FOREGROUND_IOU) & wrong[cross_class.detection])
    detection, thing = cross_class.detection[pairs], cross_class.object[pairs]
    order = np.lexsort((thing, -cross_class.iou[pairs], detection, -overlaps.predictions.scores[detection]))
    for d, t in zip(detection[order].tolist(), thing[order].tolist(), strict=True):
        if wrong[d] and not taken[t]:
            wrong[d], taken[t] = False, True
            matrix[actual[t], labels[d]] += 1
    matrix[classes, :-1] = np.bincount(labels[wrong], minlength=classes)
    matrix[:-1, classes] = np.bincount(actual[~taken], minlength=classes)
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """How often detections of a score are right: in a calibrated detector as often as the score says."""

    low: NDArray[np.float64]
    """[`BINS`] lower edges of tenths of the score."""
    detections: NDArray[np.int64]
    """[`BINS`]."""
    score: NDArray[np.float64]
    """[`BINS`] their mean score; NaN in an empty bin."""
    precision: NDArray[np.float64]
    """[`BINS`] share of right ones; NaN in an empty bin."""
    error: float
    """Mean distance between the two, weighted by detections (Guo et al. 2017, equation 3); NaN without any,
    or where scores lie outside of 0 … 1."""


def calibrate(overlaps: Overlaps, result: MatchResult) -> Calibration:
    """Compare scores with the share of right detections, those neither right nor wrong left out."""
    rows = np.flatnonzero(result.true_positive | result.false_positive)
    scores = overlaps.predictions.scores[rows]
    if not _is_share(scores):
        rows, scores = rows[:0], scores[:0]
    place = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    mean = _share(np.bincount(place, scores, BINS), count)
    precision = _share(np.bincount(place, result.true_positive[rows], BINS), count)
    some = count > 0
    gap = np.abs(mean - precision)[some]
    error = float(np.average(gap, weights=count[some])) if len(rows) else float("nan")
    return Calibration(
        low=np.arange(BINS) / BINS, detections=count, score=mean, precision=precision, error=error
    )


def _is_share(scores: NDArray[np.float64]) -> bool:
    return bool(np.all((scores >= 0) & (scores <= 1)))


def _rates(
    thresholds: NDArray[np.float64], scores: NDArray[np.float64], right: NDArray[np.bool_], objects: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 at some thresholds; scores rise."""
    cut = np.searchsorted(scores, thresholds, side="left")
    kept = len(scores) - cut
    true = np.concatenate([np.cumsum(right[::-1])[::-1], [0]])[cut]
    return _share(true, kept), _share(true, np.full(len(cut), objects)), _share(2 * true, kept + objects)


def _share(part: NDArray[np.generic], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return result


def _named(
    rates: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> dict[str, float]:
    return dict(zip(("precision", "recall", "f1"), (float(rate[0]) for rate in rates), strict=True))
