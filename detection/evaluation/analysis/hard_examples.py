"""Images to look at: those with the greatest loss of AP, and those with suspected label errors.

All from COCO's matching at IoU 0.5; no image is opened.

Letters: D detections, T objects, C classes, N images.
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
from detection.evaluation.protocol.overlaps import Overlaps, best_of_each, intersections, pairwise_iou, same_image_pairs

MAX_ENTRIES = 50
"""Entries per list."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApLoss:
    """Loss of mean average precision by each error; the sum over all errors is 1 - mAP.

    This AP is the plain one at IoU 0.5: the mean over a class's objects of the precision at the detection
    that matches each (0 for an unmatched object), without COCO's recall steps and monotone envelope, so it
    lies slightly below AP50. For a class of T objects,

        1 - AP = 1/T * (unmatched objects + sum over true positives of false positives above it / its rank)

    so an unmatched object costs 1/T, and a false positive 1/T times the sum of 1/rank over the true positives
    with lower scores. Divided by the number of classes, these add up to the loss of mAP.
    """

    false_positive: NDArray[np.float64]
    """[D] loss by each false positive; 0 for other detections."""
    missed: NDArray[np.float64]
    """[T] loss by each object that no detection of any score matches; 0 for other objects."""

    @classmethod
    def of(cls, overlaps: Overlaps, result: MatchResult) -> "ApLoss":
        """Distribute the loss over the errors."""
        labels, actual = overlaps.predictions.labels, overlaps.ground_truth.labels
        objects = np.bincount(actual[result.counted], minlength=overlaps.num_classes)
        weight = np.divide(1, objects * np.sum(objects > 0), out=np.zeros(len(objects)), where=objects > 0)

        order = result.by_score(overlaps)
        starts = np.searchsorted(labels[order], np.arange(overlaps.num_classes + 1))
        rank = np.arange(len(order)) - starts[labels[order]] + 1
        until = np.concatenate([[0.0], np.cumsum(result.true_positive[order] / rank)])
        below = until[starts[labels[order] + 1]] - until[1:]
        loss = np.zeros(len(labels))
        loss[order] = np.where(result.false_positive[order], below * weight[labels[order]], 0.0)
        missed = np.where(result.counted & ~result.detected, weight[actual], 0.0)
        return cls(false_positive=loss, missed=missed)


def rank_images(
    overlaps: Overlaps,
    result: MatchResult,
    cross_class: CrossClassPairs,
    errors: ErrorTypes,
    score: float,
    classes: Sequence[str],
    image_ids: Sequence[str],
    count: int = MAX_ENTRIES,
) -> dict[str, Any]:
    """Rank images, detections and objects by how much they deserve a look.

    Args:
        overlaps: Ground truth and detections.
        result: COCO's matching at IoU 0.5.
        cross_class: False positives on objects of other classes.
        errors: Type of each false positive.
        score: Score threshold; NaN without detections.
        classes: Names, in label order.
        image_ids: [N] image ids, in the order of `overlaps`.
        count: Maximum length of a list.

    Returns:
        `images` (their number), `iou`, `score`, and four lists. Boxes are `[x, y, width, height]`.

        * `worst`: images by loss of mAP (see `ApLoss`); `true_positives`, `false_positives` and `missed` at
          the threshold;
        * `confident_false_positives`: by descending score, with TIDE's `error_type`;
        * `largest_missed`: objects without a match above the threshold, by descending box area;
        * `suspected_label_errors`: by `reason`. `unlabeled`: a detection above the threshold of which less
          than a tenth lies on any object. `other class`: a detection above the threshold on an object of
          another class, `labeled_as`, that its own class matches with a lower score or not at all.
          `undetected`: an object that no detection of any class and score overlaps by IoU 0.5.
    """
    ranking = _Ranking(overlaps, result, cross_class, classes, image_ids, count)
    kept = overlaps.predictions.scores >= score
    detected = np.zeros(len(result.counted), dtype=np.bool_)
    detected[result.object[kept & result.true_positive]] = True
    missed = result.counted & ~detected
    return {
        "images": len(image_ids),
        "iou": FOREGROUND_IOU,
        "score": score,
        "worst": ranking.worst(kept, missed),
        "confident_false_positives": [
            ranking.detection(index) | {"error_type": ERROR_TYPES[errors.types[index]]}
            for index in ranking.highest_scores(result.false_positive)
        ],
        "largest_missed": [ranking.object(index) for index in ranking.largest(missed)],
        "suspected_label_errors": [
            *ranking.unlabeled(kept & (errors.types == BACKGROUND)),
            *ranking.other_class(kept & (errors.types == CLASSIFICATION)),
            *ranking.undetected(),
        ],
    }


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Lists of at most `count` entries."""

    overlaps: Overlaps
    result: MatchResult
    cross_class: CrossClassPairs
    classes: Sequence[str]
    image_ids: Sequence[str]
    count: int

    def detection(self, index: int) -> dict[str, Any]:
        """JSON entry of a detection."""
        predictions = self.overlaps.predictions
        entry = self._entry(predictions.images[index], predictions.labels[index], predictions.boxes[index])
        return entry | {"score": float(predictions.scores[index])}

    def object(self, index: int) -> dict[str, Any]:
        """JSON entry of an object."""
        truth = self.overlaps.ground_truth
        return self._entry(truth.images[index], truth.labels[index], truth.boxes[index])

    def _entry(self, image: int, label: int, box: NDArray[np.float64]) -> dict[str, Any]:
        rounded = [round(side, 2) for side in box.tolist()]
        return {"image": self.image_ids[image], "class": self.classes[label], "box": rounded}

    def highest_scores(self, mask: NDArray[np.bool_], count: int | None = None) -> list[int]:
        """Indices of the masked detections with the highest scores, descending."""
        count = self.count if count is None else count
        indices = np.flatnonzero(mask)
        scores = self.overlaps.predictions.scores[indices]
        if len(indices) > count:  # takes a fifth of the time of sorting them all
            above = scores >= np.partition(scores, -count)[-count]
            indices, scores = indices[above], scores[above]
        highest: list[int] = indices[np.argsort(-scores, kind="stable")][:count].tolist()
        return highest

    def largest(self, mask: NDArray[np.bool_]) -> list[int]:
        """Indices of the masked objects with the largest boxes, descending."""
        indices = np.flatnonzero(mask)
        areas = np.prod(self.overlaps.ground_truth.boxes[indices, 2:], axis=1)
        largest: list[int] = indices[np.argsort(-areas, kind="stable")][: self.count].tolist()
        return largest

    def worst(self, kept: NDArray[np.bool_], missed: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Images by loss of mAP."""
        loss, num_images = ApLoss.of(self.overlaps, self.result), len(self.image_ids)
        detection_image, object_image = self.overlaps.predictions.images, self.overlaps.ground_truth.images
        by_false_positives = np.bincount(detection_image, loss.false_positive, num_images)
        by_missed = np.bincount(object_image, loss.missed, num_images)
        total = by_false_positives + by_missed
        true, false = (
            np.bincount(detection_image[kept & mask], minlength=num_images)
            for mask in (self.result.true_positive, self.result.false_positive)
        )
        missed_objects = np.bincount(object_image[missed], minlength=num_images)
        return [
            {
                "image": self.image_ids[image],
                "AP50_loss": float(total[image]),
                "loss_by_false_positives": float(by_false_positives[image]),
                "loss_by_missed": float(by_missed[image]),
                "true_positives": int(true[image]),
                "false_positives": int(false[image]),
                "missed": int(missed_objects[image]),
            }
            for image in np.argsort(-total, kind="stable")[: self.count].tolist()
            if total[image] > 0
        ]

    def unlabeled(self, mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Masked detections on no object; TIDE's background type disregards crowd and difficult objects."""
        indices = np.array(self.highest_scores(mask, 8 * self.count), dtype=np.int64)
        predictions, truth = self.overlaps.predictions.take(indices), self.overlaps.ground_truth
        on_object = np.zeros(len(indices), dtype=np.bool_)
        for detection, objects in same_image_pairs(predictions.images, truth.images):
            detection, _, common = intersections(predictions, truth, detection, objects)
            inside = common / np.prod(predictions.boxes[detection, 2:], axis=1)
            on_object[detection[inside >= BACKGROUND_IOU]] = True
        unlabeled = indices[~on_object].tolist()[: self.count]
        return [{"reason": "unlabeled"} | self.detection(index) for index in unlabeled]

    def other_class(self, mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Masked detections whose score exceeds that of their object's own class."""
        scores, pairs = self.overlaps.predictions.scores, self.cross_class
        _, target = best_of_each(pairs.detection, pairs.object, pairs.iou, len(scores))
        own = np.full(len(self.result.counted), -np.inf)
        own[self.result.object[self.result.true_positive]] = scores[self.result.true_positive]
        higher = np.zeros(len(scores), dtype=np.bool_)
        indices = np.flatnonzero(mask)
        higher[indices] = scores[indices] > own[target[indices]]
        return [
            {"reason": "other class"}
            | self.detection(index)
            | {"labeled_as": self.classes[self.overlaps.ground_truth.labels[target[index]]]}
            for index in self.highest_scores(higher)
        ]

    def undetected(self) -> list[dict[str, Any]]:
        """Objects that no detection of any class overlaps by `FOREGROUND_IOU`."""
        covered = np.zeros(len(self.result.counted), dtype=np.bool_)
        covered[self.overlaps.object[self.overlaps.iou >= FOREGROUND_IOU]] = True
        covered[self.cross_class.object[self.cross_class.iou >= FOREGROUND_IOU]] = True
        covered |= self._covered_by_true_positives(~covered & self.result.counted)
        return [{"reason": "undetected"} | self.object(index) for index in self.largest(self.result.counted & ~covered)]

    def _covered_by_true_positives(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[T] masked objects under a true positive of another class, which `CrossClassPairs` leaves out."""
        indices, truth = np.flatnonzero(mask), self.overlaps.ground_truth
        detections = self.overlaps.predictions.take(np.flatnonzero(self.result.true_positive))
        covered = np.zeros(len(mask), dtype=np.bool_)
        for position, detection in same_image_pairs(truth.images[indices], detections.images):
            _, objects, iou = pairwise_iou(detections, truth, detection, indices[position])
            covered[objects[iou >= FOREGROUND_IOU]] = True
        return covered
