"""What kind of errors a detector makes, and what average precision each kind costs: TIDE.

After Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, sections 2.2
and 2.3; our own code. Each false positive is of one kind, the first that fits:

    localization     right class, but overlaps its object by 0.1 to 0.5 only
    classification   overlaps an object of another class by 0.5 or more
    duplicate        overlaps an object of its class by 0.5 or more, and a better score took that object
    background       overlaps no object by 0.1
    both             overlaps an object of another class by 0.1 to 0.5

A missed object is one that no detection finds, and that mending no localization or classification would find.
The gain of a kind is the AP50 with that kind alone mended, less the AP50 as it is; the gains do not add up.

Letters: D detections, C classes, P pairs of a detection and an object of another class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.accumulate import RECALLS
from detection.evaluation.protocol.matching import LOWEST, MAX_DETECTIONS, Matches
from detection.evaluation.protocol.ordering import ranges
from detection.evaluation.protocol.overlaps import Overlaps, best_of_each, pairwise_iou

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
"""IoU from which a box is on an object, and below which it is on none."""
ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background")
"""Of false positives; `ErrorTypes.kind` counts from 0."""
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND = range(5)
NOT_WRONG = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchResult:
    """COCO's matching at IoU 0.5 and among objects of every size, spelled out."""

    true_positive: NDArray[np.bool_]
    """[D]."""
    false_positive: NDArray[np.bool_]
    """[D]; neither: on a crowd or a difficult object, or beyond the cap of 100."""
    counted: NDArray[np.bool_]
    """[T] objects that should be found."""
    detected: NDArray[np.bool_]
    """[T] those that are."""
    object: NDArray[np.int64]
    """[D] what each right detection is on, a row of `Overlaps.ground_truth`."""

    @classmethod
    def of(cls, overlaps: Overlaps, matches: Matches) -> "MatchResult":
        """Read them off the matches."""
        right = matches.true_positive & LOWEST == 1
        found = np.zeros(len(overlaps.ground_truth.labels), dtype=np.bool_)
        found[matches.object[right]] = True
        return cls(
            true_positive=right,
            false_positive=(matches.false_positive & LOWEST == 1) & (overlaps.rank < MAX_DETECTIONS),
            counted=~overlaps.ground_truth.ignored,
            detected=found,
            object=matches.object,
        )

    def ranked(self, overlaps: Overlaps) -> NDArray[np.int64]:
        """Rows of those right or wrong, in the order of `Overlaps.by_score`."""
        order = overlaps.by_score
        return order[(self.true_positive | self.false_positive)[order]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossClassPairs:
    """Pairs of a false positive and an object of another class, with an IoU of `BACKGROUND_IOU` or more."""

    detection: NDArray[np.int64]
    """[P] rows of `Overlaps.predictions`, rising."""
    object: NDArray[np.int64]
    """[P] rows of `Overlaps.ground_truth`; counted ones."""
    iou: NDArray[np.float64]
    """[P]."""

    @classmethod
    def of(cls, overlaps: Overlaps, result: MatchResult) -> "CrossClassPairs":
        """Compare every false positive with all objects of its picture."""
        truth, found = overlaps.ground_truth, overlaps.predictions
        wrong = np.flatnonzero(result.false_positive)
        start = np.searchsorted(truth.images, found.images[wrong], side="left")
        count = np.searchsorted(truth.images, found.images[wrong], side="right") - start
        parts = []
        for left, thing in ranges(start, count):
            detection = wrong[left]
            other = result.counted[thing] & (truth.labels[thing] != found.labels[detection])
            detection, thing, iou = pairwise_iou(found, truth, detection[other], thing[other])
            near = iou >= BACKGROUND_IOU
            parts.append((detection[near], thing[near], iou[near]))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(detection=columns[0], object=columns[1], iou=columns[2])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorTypes:
    """The kinds of all errors, and what mending each would bring."""

    ap50: float
    """As it is: COCO's AP50; NaN where there is nothing to find."""
    types: NDArray[np.int64]
    """[D] a place in `ERROR_TYPES`; -1: no false positive."""
    missed: NDArray[np.bool_]
    """[T]."""
    counts: Mapping[str, int]
    """By kind: `ERROR_TYPES`, `missed`, and `false_positives`, `false_negatives` in all."""
    gains: Mapping[str, float]
    """dAP50 by the same names: the kind mended, all false positives gone, all false negatives forgiven."""


def analyze(overlaps: Overlaps, result: MatchResult, cross_class: CrossClassPairs) -> ErrorTypes:
    """Name every error and mend each kind in turn."""
    kind, target = _kinds(overlaps, result, cross_class)
    unfound = result.counted & ~result.detected
    explained = np.zeros(len(unfound), dtype=np.bool_)
    explained[target[(kind == LOCALIZATION) | (kind == CLASSIFICATION)]] = True
    missed = unfound & ~explained

    scene = _Scene(overlaps, result)
    before = scene.ap50()
    after = {name: scene.ap50(without=kind == number) for number, name in enumerate(ERROR_TYPES)}
    for number in (CLASSIFICATION, LOCALIZATION):
        rows = np.flatnonzero(kind == number)
        mended = _first_of_each(overlaps, rows[unfound[target[rows]]], target)
        after[ERROR_TYPES[number]] = scene.ap50(without=kind == number, mended=mended, target=target)
    after["missed"] = scene.ap50(forgiven=missed)
    after["false_positives"] = scene.ap50(without=result.false_positive)
    after["false_negatives"] = scene.ap50(forgiven=unfound)
    counts = {name: int(np.sum(kind == number)) for number, name in enumerate(ERROR_TYPES)}
    counts |= {"missed": int(missed.sum())}
    counts |= {"false_positives": int(result.false_positive.sum()), "false_negatives": int(unfound.sum())}
    gains = {name: value - before for name, value in after.items()}
    return ErrorTypes(ap50=before, types=kind, missed=missed, counts=counts, gains=gains)


def _kinds(
    overlaps: Overlaps, result: MatchResult, cross_class: CrossClassPairs
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[D] each false positive's kind, and [D] the object it was meant for: its nearest, of either class."""
    count = len(result.false_positive)
    pairs = np.flatnonzero(result.counted[overlaps.object])
    own, own_object = best_of_each(
        overlaps.detection[pairs], overlaps.object[pairs], overlaps.iou[pairs], count
    )
    other, other_object = best_of_each(cross_class.detection, cross_class.object, cross_class.iou, count)
    kind = np.select(
        [
            ~result.false_positive,
            (own >= BACKGROUND_IOU) & (own < FOREGROUND_IOU),
            other >= FOREGROUND_IOU,
            own >= FOREGROUND_IOU,
            other < BACKGROUND_IOU,
        ],
        [NOT_WRONG, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    return kind, np.where(kind == CLASSIFICATION, other_object, own_object)


def _first_of_each(
    overlaps: Overlaps, rows: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of the detections meant for the same object, the one with the best score: an object is found once."""
    rows = rows[np.argsort(-overlaps.predictions.scores[rows], kind="stable")]
    _, first = np.unique(target[rows], return_index=True)
    return rows[first]


class _Scene:
    """AP50 of the split as it would be after some mending. K: detections that are right or wrong."""

    def __init__(self, overlaps: Overlaps, result: MatchResult) -> None:
        self.overlaps, self.result = overlaps, result
        self.order = result.ranked(overlaps)
        self.labels, self.true_positive = (
            overlaps.predictions.labels[self.order],
            result.true_positive[self.order],
        )
        self.known = (
            np.bincount(overlaps.ground_truth.labels[result.counted], minlength=overlaps.num_classes) > 0
        )

    def ap50(
        self,
        without: NDArray[np.bool_] | None = None,
        mended: NDArray[np.int64] | None = None,
        target: NDArray[np.int64] | None = None,
        forgiven: NDArray[np.bool_] | None = None,
    ) -> float:
        """Mean over the classes with objects.

        Args:
            without: [D] wrong detections that are taken away.
            mended: Rows of such that come back as right ones, of the class of their target.
            target: [D] objects.
            forgiven: [T] objects that need not be found.
        """
        labels, right, classes = self.labels, self.true_positive, np.arange(self.overlaps.num_classes + 1)
        kept = np.ones(len(labels), dtype=np.bool_) if without is None else ~without[self.order]
        if mended is not None and target is not None:
            at, new = self._places(mended, self.overlaps.ground_truth.labels[target[mended]])
            labels, right, kept = (
                np.insert(labels, at, new),
                np.insert(right, at, True),
                np.insert(kept, at, True),
            )
        upto = np.concatenate([[0], np.cumsum(kept)])
        before = upto[np.searchsorted(labels, classes)]  # [C + 1] of all classes before
        hits = np.flatnonzero(right)
        first = np.searchsorted(labels[hits], classes)
        true = np.arange(1, len(hits) + 1) - first[labels[hits]]
        precision = true / (upto[hits + 1] - before[labels[hits]])

        counted = self.result.counted if forgiven is None else self.result.counted & ~forgiven
        objects = np.bincount(self.overlaps.ground_truth.labels[counted], minlength=self.overlaps.num_classes)
        values = [
            _average_precision(precision[first[label] : first[label + 1]], int(objects[label]))
            if objects[label]
            else float(before[label] == before[label + 1])  # nothing to find: is nothing wrong left either?
            for label in np.flatnonzero(self.known)
        ]
        return float(np.mean(values)) if values else float("nan")

    def _places(
        self, rows: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where detections come in the order under new labels, behind equal scores; and these, so sorted."""
        scores = self.overlaps.predictions.scores
        best = np.lexsort((-scores[rows], labels))
        rows, labels = rows[best], labels[best]
        places = []
        for label in np.unique(labels):
            low, high = np.searchsorted(self.labels, (label, label + 1))
            falling = -scores[self.order[low:high]]
            places.append(low + np.searchsorted(falling, -scores[rows[labels == label]], side="right"))
        return np.concatenate([rows[:0], *places]), labels


def _average_precision(precision: NDArray[np.float64], objects: int) -> float:
    """COCO's, from the precision at each right detection of a class, the best score first."""
    recall = np.arange(1, len(precision) + 1) / objects
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALLS, side="left")].mean())
