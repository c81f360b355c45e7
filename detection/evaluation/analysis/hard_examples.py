"""Which pictures to look at: those that cost most, and those whose labels may be wrong.

All of it is read off COCO's matching at IoU 0.5; no picture is opened.

Letters: D detections, T objects, C classes, N pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.analysis.error_types import (
    BACKGROUND,
    BACKGROUND_IOU,
    CLASSIFICATION,
    ERROR_TYPES,
    FOREGROUND_IOU,
    CrossClassPairs,
    ErrorTypes,
    MatchResult,
)
from detection.evaluation.protocol.ordering import ranges
from detection.evaluation.protocol.overlaps import Overlaps, best_of_each, intersections, pairwise_iou

MAX_ENTRIES = 50
"""Rows of each list."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApLoss:
    """What each error takes from the mean average precision; all of it together is 1 less that mean.

    This average precision is the plain one at IoU 0.5: the mean, over a class's objects, of the precision at
    the place of the detection that finds each (0 where none does), without COCO's steps and its monotone
    envelope, so it lies a little below AP50. Written out for a class of T objects, what is missing to 1 is

        1/T * (objects not found + sum over right detections of (wrong ones above it) / (all up to it))

    so an object that is not found costs 1/T, and a wrong detection 1/T times the sum of 1/place over the
    right detections that score less. Divided by the number of classes these add up to the loss of the mean.
    """

    false_positive: NDArray[np.float64]
    """[D] by each wrong detection; 0 for the others."""
    missed: NDArray[np.float64]
    """[T] by each object that no detection finds, however low its score; 0 for the others."""

    @classmethod
    def of(cls, overlaps: Overlaps, result: MatchResult) -> "ApLoss":
        """Share the loss out."""
        labels, truth = overlaps.predictions.labels, overlaps.ground_truth.labels
        objects = np.bincount(truth[result.counted], minlength=overlaps.num_classes)
        share = np.divide(1, objects * np.sum(objects > 0), out=np.zeros(len(objects)), where=objects > 0)

        rows = result.ranked(overlaps)
        starts = np.searchsorted(labels[rows], np.arange(overlaps.num_classes + 1))
        place = np.arange(len(rows)) - starts[labels[rows]] + 1
        until = np.concatenate([[0.0], np.cumsum(result.true_positive[rows] / place)])
        below = until[starts[labels[rows] + 1]] - until[1:]
        wrong = np.zeros(len(labels))
        wrong[rows] = np.where(result.false_positive[rows], below * share[labels[rows]], 0.0)
        return cls(
            false_positive=wrong, missed=np.where(result.counted & ~result.detected, share[truth], 0.0)
        )


def rank_images(
    overlaps: Overlaps,
    result: MatchResult,
    cross_class: CrossClassPairs,
    errors: ErrorTypes,
    score: float,
    classes: Sequence[str],
    pictures: Sequence[str],
    count: int = MAX_ENTRIES,
) -> dict[str, Any]:
    """Rank pictures, detections and objects, the one to look at first on top.

    Args:
        overlaps: The sparse pass.
        result: COCO's matching at IoU 0.5.
        cross_class: False positives near objects of other classes.
        errors: The kind of each false positive.
        score: Threshold from which detections are taken seriously; NaN where there are none.
        classes: Names, in label order.
        pictures: What picture i of the overlaps is called.
        count: Longest list.

    Returns:
        `pictures` (how many), `iou`, `score`, and four lists. Boxes are `[x, y, width, height]`.

        * `worst`: pictures by what their errors take from the mean average precision (see `ApLoss`); `right`,
          `wrong` and `missed` count from the threshold on;
        * `confident_wrong`: false positives, the highest score first, with TIDE's `kind`;
        * `largest_missed`: objects that no detection above the threshold finds, the largest box first;
        * `suspects`: where the labels may be wrong. `why` is `unlabelled` (a detection above the threshold
          of which less than a tenth lies on any object), `other class` (one on an object of another class,
          `labelled`, which its own class finds with a lower score or not at all) or `unseen` (an object that
          no detection of any class overlaps by 0.5, whatever its score).
    """
    names = _Names(overlaps, classes, pictures)
    kind = errors.types
    kept = overlaps.predictions.scores >= score
    seen = np.zeros(len(result.counted), dtype=np.bool_)
    seen[result.object[kept & result.true_positive]] = True
    missed = result.counted & ~seen
    largest = np.flatnonzero(missed)
    largest = largest[np.argsort(-_areas(overlaps, largest), kind="stable")][:count]
    return {
        "images": len(pictures),
        "iou": FOREGROUND_IOU,
        "score": score,
        "worst": _worst(overlaps, result, kept, missed, pictures, count),
        "confident_false_positives": [
            names.detection(row) | {"error_type": ERROR_TYPES[kind[row]]}
            for row in _best(overlaps, result.false_positive, count)
        ],
        "largest_missed": [names.object(row) for row in largest.tolist()],
        "suspected_label_errors": [
            *_unlabelled(overlaps, names, kept & (kind == BACKGROUND), count),
            *_other_class(overlaps, names, result, cross_class, kept & (kind == CLASSIFICATION), count),
            *_unseen(overlaps, names, result, cross_class, count),
        ],
    }


@dataclass(frozen=True, slots=True)
class _Names:
    """Rows of the overlaps as people know them."""

    overlaps: Overlaps
    classes: Sequence[str]
    pictures: Sequence[str]

    def detection(self, row: int) -> dict[str, Any]:
        found = self.overlaps.predictions
        return self._named(found.images[row], found.labels[row], found.boxes[row]) | {
            "score": float(found.scores[row])
        }

    def object(self, row: int) -> dict[str, Any]:
        truth = self.overlaps.ground_truth
        return self._named(truth.images[row], truth.labels[row], truth.boxes[row])

    def _named(self, image: int, label: int, box: NDArray[np.float64]) -> dict[str, Any]:
        return {
            "image": self.pictures[image],
            "class": self.classes[label],
            "box": [round(side, 2) for side in box.tolist()],
        }


def _worst(
    overlaps: Overlaps,
    result: MatchResult,
    kept: NDArray[np.bool_],
    missed: NDArray[np.bool_],
    pictures: Sequence[str],
    count: int,
) -> list[dict[str, Any]]:
    lost = ApLoss.of(overlaps, result)
    where, there = overlaps.predictions.images, overlaps.ground_truth.images
    by_wrong = np.bincount(where, lost.false_positive, len(pictures))
    by_missed = np.bincount(there, lost.missed, len(pictures))
    total = by_wrong + by_missed
    order = np.argsort(-total, kind="stable")[:count]
    right, wrong = (
        np.bincount(where[kept & each], minlength=len(pictures))
        for each in (result.true_positive, result.false_positive)
    )
    unfound = np.bincount(there[missed], minlength=len(pictures))
    return [
        {
            "image": pictures[image],
            "AP50_loss": float(total[image]),
            "loss_by_false_positives": float(by_wrong[image]),
            "loss_by_missed": float(by_missed[image]),
            "true_positives": int(right[image]),
            "false_positives": int(wrong[image]),
            "missed": int(unfound[image]),
        }
        for image in order.tolist()
        if total[image] > 0
    ]


def _best(overlaps: Overlaps, chosen: NDArray[np.bool_], count: int) -> list[int]:
    """Rows of some detections, the highest score first."""
    rows = np.flatnonzero(chosen)
    scores = overlaps.predictions.scores[rows]
    if len(rows) > count:  # a fifth of the time of sorting them all
        above = scores >= np.partition(scores, -count)[-count]
        rows, scores = rows[above], scores[above]
    best: list[int] = rows[np.argsort(-scores, kind="stable")][:count].tolist()
    return best


def _unlabelled(
    overlaps: Overlaps, names: _Names, chosen: NDArray[np.bool_], count: int
) -> list[dict[str, Any]]:
    """TIDE's kind leaves objects out that need not be found; a crowd or a difficult object explains too."""
    rows = np.array(_best(overlaps, chosen, 8 * count), dtype=np.int64)
    found, truth = overlaps.predictions.take(rows), overlaps.ground_truth
    start = np.searchsorted(truth.images, found.images, side="left")
    end = np.searchsorted(truth.images, found.images, side="right")
    explained = np.zeros(len(rows), dtype=np.bool_)
    for left, thing in ranges(start, end - start):
        detection, _, common = intersections(found, truth, left, thing)
        inside = common / np.prod(found.boxes[detection, 2:], axis=1)
        explained[detection[inside >= BACKGROUND_IOU]] = True
    return [{"reason": "unlabeled"} | names.detection(row) for row in rows[~explained].tolist()[:count]]


def _other_class(
    overlaps: Overlaps,
    names: _Names,
    result: MatchResult,
    cross_class: CrossClassPairs,
    chosen: NDArray[np.bool_],
    count: int,
) -> list[dict[str, Any]]:
    scores = overlaps.predictions.scores
    _, target = best_of_each(cross_class.detection, cross_class.object, cross_class.iou, len(scores))
    own = np.full(len(result.counted), -np.inf)
    own[result.object[result.true_positive]] = scores[result.true_positive]
    surer = np.zeros(len(scores), dtype=np.bool_)
    rows = np.flatnonzero(chosen)
    surer[rows] = scores[rows] > own[target[rows]]
    return [
        {"reason": "other class"} | names.detection(row) | {"labeled_as": names.object(target[row])["class"]}
        for row in _best(overlaps, surer, count)
    ]


def _unseen(
    overlaps: Overlaps, names: _Names, result: MatchResult, cross_class: CrossClassPairs, count: int
) -> list[dict[str, Any]]:
    seen = np.zeros(len(result.counted), dtype=np.bool_)
    seen[overlaps.object[overlaps.iou >= FOREGROUND_IOU]] = True
    seen[cross_class.object[cross_class.iou >= FOREGROUND_IOU]] = True
    seen |= _under_right(overlaps, result, ~seen & result.counted)
    rows = np.flatnonzero(result.counted & ~seen)
    rows = rows[np.argsort(-_areas(overlaps, rows), kind="stable")][:count]
    return [{"reason": "undetected"} | names.object(row) for row in rows.tolist()]


def _under_right(overlaps: Overlaps, result: MatchResult, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[T] of some objects, those under a true positive of another class (not in `CrossClassPairs`)."""
    things, truth = np.flatnonzero(chosen), overlaps.ground_truth
    right = overlaps.predictions.take(np.flatnonzero(result.true_positive))
    start = np.searchsorted(right.images, truth.images[things], side="left")
    end = np.searchsorted(right.images, truth.images[things], side="right")
    covered = np.zeros(len(chosen), dtype=np.bool_)
    for left, detection in ranges(start, end - start):
        _, thing, iou = pairwise_iou(right, truth, detection, things[left])
        covered[thing[iou >= FOREGROUND_IOU]] = True
    return covered


def _areas(overlaps: Overlaps, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.prod(overlaps.ground_truth.boxes[rows, 2:], axis=1)
    return areas
