"""Error types of a detector and the AP50 that each type costs (TIDE).

After Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, sections 2.2
and 2.3; our own code. Each false positive has one type, the first that applies:

    localization     correct class, but an IoU of only 0.1 to 0.5 with its object
    classification   IoU of 0.5 or more with an object of another class
    duplicate        IoU of 0.5 or more with an object of its class that a higher score has taken
    background       IoU below 0.1 with every object
    both             IoU of 0.1 to 0.5 with an object of another class

Missed: an unmatched object that is not the target of a localization or classification error. The gain of a
type (dAP50) is AP50 with that type alone fixed, minus AP50; the gains do not add up.

The gains of classification and localization follow the paper: each type alone is fixed, so an object is given to the
best-scored error of that type. tidecv's code gives it to the best-scored error of both types together and leaves the
others unfixed: its two gains are up to 2.9 points lower. The counts of all types are the same.

Letters: D detections, T objects, C classes, P pairs of a detection and an object of another class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.accumulate import RECALLS
from detection.evaluation.protocol.matching import IOU_50_BIT, Matches
from detection.evaluation.protocol.overlaps import Overlaps, best_of_each, pairwise_iou, same_image_pairs

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
"""IoU from which a box is on an object, and below which it is on the background."""
ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background")
"""Types of false positives; `ErrorTypes.types` holds indices into it."""
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND = range(5)
NO_ERROR = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchResult:
    """COCO's matching at IoU 0.5 and for objects of all sizes, as masks."""

    true_positive: NDArray[np.bool_]
    """[D] detections that match an object that counts."""
    false_positive: NDArray[np.bool_]
    """[D] unmatched detections. Detections on a crowd or difficult object, or beyond the limit of 100,
    are neither true nor false positives."""
    counted: NDArray[np.bool_]
    """[T] objects that count: neither crowd nor difficult."""
    detected: NDArray[np.bool_]
    """[T] objects with a true positive."""
    object: NDArray[np.int64]
    """[D] index into `Overlaps.ground_truth` of the matched object; -1: none."""

    @classmethod
    def of(cls, overlaps: Overlaps, matches: Matches) -> "MatchResult":
        """Read the masks off the matches."""
        true_positive = matches.true_positive & IOU_50_BIT == 1
        detected = np.zeros(len(overlaps.ground_truth.labels), dtype=np.bool_)
        detected[matches.object[true_positive]] = True
        return cls(
            true_positive=true_positive,
            false_positive=(matches.false_positive & IOU_50_BIT == 1)
            & (overlaps.rank < matches.limits.most_detections),
            counted=~overlaps.ground_truth.ignored,
            detected=detected,
            object=matches.object,
        )

    def by_score(self, overlaps: Overlaps) -> NDArray[np.int64]:
        """Indices of true and false positives in the order of `Overlaps.by_score`."""
        order = overlaps.by_score
        return order[(self.true_positive | self.false_positive)[order]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossClassPairs:
    """Pairs of a false positive and an object of another class with an IoU of at least `BACKGROUND_IOU`."""

    detection: NDArray[np.int64]
    """[P] index into `Overlaps.predictions`, ascending."""
    object: NDArray[np.int64]
    """[P] index into `Overlaps.ground_truth` of an object that counts."""
    iou: NDArray[np.float64]
    """[P] IoU of the pair."""

    @classmethod
    def of(cls, overlaps: Overlaps, result: MatchResult) -> "CrossClassPairs":
        """Compare every false positive with all objects of its image."""
        truth, predictions = overlaps.ground_truth, overlaps.predictions
        false = np.flatnonzero(result.false_positive)
        parts = []
        for position, objects in same_image_pairs(predictions.images[false], truth.images):
            detection = false[position]
            other = result.counted[objects] & (truth.labels[objects] != predictions.labels[detection])
            detection, objects, iou = pairwise_iou(predictions, truth, detection[other], objects[other])
            near = iou >= BACKGROUND_IOU
            parts.append((detection[near], objects[near], iou[near]))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(detection=columns[0], object=columns[1], iou=columns[2])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorTypes:
    """Types of all errors and the gain of fixing each type."""

    ap50: float
    """COCO's AP50; NaN without objects."""
    types: NDArray[np.int64]
    """[D] index into `ERROR_TYPES`; -1: not a false positive."""
    missed: NDArray[np.bool_]
    """[T] missed objects."""
    counts: Mapping[str, int]
    """Errors by name: `ERROR_TYPES`, `missed`, and the totals `false_positives` and `false_negatives`."""
    gains: Mapping[str, float]
    """dAP50 by the same names: with the type fixed, or without all false positives or false negatives."""


def analyze(overlaps: Overlaps, result: MatchResult, cross_class: CrossClassPairs) -> ErrorTypes:
    """Classify every error and compute AP50 with each type fixed."""
    types, target = _classify(overlaps, result, cross_class)
    undetected = result.counted & ~result.detected
    targeted = np.zeros(len(undetected), dtype=np.bool_)
    targeted[target[(types == LOCALIZATION) | (types == CLASSIFICATION)]] = True
    missed = undetected & ~targeted

    what_if = WhatIf(overlaps, result)
    before = what_if.ap50()
    after = {name: what_if.ap50(removed=types == number) for number, name in enumerate(ERROR_TYPES)}
    for number in (CLASSIFICATION, LOCALIZATION):
        errors = np.flatnonzero(types == number)
        fixed = _best_per_target(overlaps, errors[undetected[target[errors]]], target)
        after[ERROR_TYPES[number]] = what_if.ap50(removed=types == number, fixed=fixed, target=target)
    after["missed"] = what_if.ap50(removed_objects=missed)
    after["false_positives"] = what_if.ap50(removed=result.false_positive)
    after["false_negatives"] = what_if.ap50(removed_objects=undetected)
    counts = {name: int(np.sum(types == number)) for number, name in enumerate(ERROR_TYPES)}
    counts |= {"missed": int(missed.sum())}
    counts |= {"false_positives": int(result.false_positive.sum()), "false_negatives": int(undetected.sum())}
    gains = {name: value - before for name, value in after.items()}
    return ErrorTypes(ap50=before, types=types, missed=missed, counts=counts, gains=gains)


def _classify(
    overlaps: Overlaps, result: MatchResult, cross_class: CrossClassPairs
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[D] type of each false positive, and [D] its target: the object of greatest IoU."""
    count = len(result.false_positive)
    pairs = np.flatnonzero(result.counted[overlaps.object])
    own, own_object = best_of_each(overlaps.detection[pairs], overlaps.object[pairs], overlaps.iou[pairs], count)
    other, other_object = best_of_each(cross_class.detection, cross_class.object, cross_class.iou, count)
    types = np.select(
        [
            ~result.false_positive,
            (own >= BACKGROUND_IOU) & (own < FOREGROUND_IOU),
            other >= FOREGROUND_IOU,
            own >= FOREGROUND_IOU,
            other < BACKGROUND_IOU,
        ],
        [NO_ERROR, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND],
        BOTH,
    )
    return types, np.where(types == CLASSIFICATION, other_object, own_object)


def _best_per_target(overlaps: Overlaps, detections: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Detection with the highest score of each target: an object is matched once."""
    detections = detections[np.argsort(-overlaps.predictions.scores[detections], kind="stable")]
    _, first = np.unique(target[detections], return_index=True)
    return detections[first]


class WhatIf:
    """AP50 of the split if some errors were fixed.

    Letters: K true and false positives.
    """

    def __init__(self, overlaps: Overlaps, result: MatchResult) -> None:
        self.overlaps, self.result = overlaps, result
        self.order = result.by_score(overlaps)  # [K]
        self.labels = overlaps.predictions.labels[self.order]
        self.true_positive = result.true_positive[self.order]
        self.object_labels = overlaps.ground_truth.labels
        self.has_objects = self._count_objects(result.counted) > 0

    def ap50(
        self,
        removed: NDArray[np.bool_] | None = None,
        fixed: NDArray[np.int64] | None = None,
        target: NDArray[np.int64] | None = None,
        removed_objects: NDArray[np.bool_] | None = None,
    ) -> float:
        """Mean AP at IoU 0.5 over the classes with objects.

        Args:
            removed: [D] false positives to remove.
            fixed: Indices of removed detections to add again as true positives of the class of their target.
            target: [D] target object of each detection.
            removed_objects: [T] objects to remove.
        """
        labels, true_positive, classes = (self.labels, self.true_positive, np.arange(self.overlaps.num_classes + 1))
        kept = np.ones(len(labels), dtype=np.bool_) if removed is None else ~removed[self.order]
        if fixed is not None and target is not None:
            at, new_labels = self._insertion(fixed, self.object_labels[target[fixed]])
            labels = np.insert(labels, at, new_labels)
            true_positive, kept = np.insert(true_positive, at, True), np.insert(kept, at, True)
        kept_until = np.concatenate([[0], np.cumsum(kept)])
        before = kept_until[np.searchsorted(labels, classes)]  # [C + 1] in all classes before
        hits = np.flatnonzero(true_positive)
        first = np.searchsorted(labels[hits], classes)
        true = np.arange(1, len(hits) + 1) - first[labels[hits]]
        precision = true / (kept_until[hits + 1] - before[labels[hits]])

        counted = self.result.counted
        objects = self._count_objects(counted if removed_objects is None else counted & ~removed_objects)
        values = [
            _average_precision(precision[first[label] : first[label + 1]], int(objects[label]))
            if objects[label]
            else float(before[label] == before[label + 1])  # without objects, 1 if no false positive is left
            for label in np.flatnonzero(self.has_objects)
        ]
        return float(np.mean(values)) if values else float("nan")

    def _count_objects(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(self.object_labels[mask], minlength=self.overlaps.num_classes)

    def _insertion(
        self, detections: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in the order of detections with new labels, behind equal scores; and these labels."""
        scores = self.overlaps.predictions.scores
        order = np.lexsort((-scores[detections], labels))
        detections, labels = detections[order], labels[order]
        positions = []
        for label in np.unique(labels):
            low, high = np.searchsorted(self.labels, (label, label + 1))
            descending = -scores[self.order[low:high]]
            positions.append(low + np.searchsorted(descending, -scores[detections[labels == label]], side="right"))
        return np.concatenate([detections[:0], *positions]), labels


def _average_precision(precision: NDArray[np.float64], objects: int) -> float:
    """COCO's AP of a class from the precision at each true positive, in order of descending score."""
    recall = np.arange(1, len(precision) + 1) / objects
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALLS, side="left")].mean())
