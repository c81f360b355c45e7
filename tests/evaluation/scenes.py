"""Generated ground truth and detections with all edge cases."""

from collections.abc import Callable

import numpy as np

from detection.data.loading.index import Index
from detection.evaluation.analysis.error_types import CrossClassPairs, MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions
from detection.evaluation.protocol.results import SplitDetections

MakeIndex = Callable[..., Index]
FindAll = Callable[[Index], SplitDetections]

NUM_IMAGES, NUM_CLASSES = 6, 5
"""The last class does not occur, the one before has no objects."""


def random_split(seed: int) -> tuple[GroundTruth, Predictions]:
    """Objects and detections with ties, crowds, duplicates, empty sides and areas of exactly 32 x 32 px."""
    rng = np.random.default_rng(seed)
    objects, detections = int(rng.integers(0, 40)), int(rng.integers(0, 130))

    def boxes(count: int) -> np.ndarray:
        if rng.random() < 0.5:  # a coarse grid: equal overlaps, copies, boxes without area
            return rng.integers(0, 12, (count, 4)) * float(rng.choice([1, 8, 16]))
        return np.concatenate([rng.uniform(0, 60, (count, 2)), rng.uniform(0, 80, (count, 2))], axis=1)

    truth_boxes, predicted_boxes = boxes(objects), boxes(detections)
    truth = GroundTruth(
        images=rng.integers(0, NUM_IMAGES, objects),
        labels=rng.integers(0, NUM_CLASSES - 2, objects),
        boxes=truth_boxes,
        areas=truth_boxes[:, 2] * truth_boxes[:, 3] * rng.choice([0.5, 1, 1.7], objects),
        ignored=rng.random(objects) < 0.2,
    )
    images, labels = rng.integers(0, NUM_IMAGES, detections), rng.integers(0, NUM_CLASSES - 1, detections)
    if objects:  # two thirds lie near an object
        near = rng.integers(0, objects, detections * 2 // 3)
        jitter = rng.choice([0, 0, 1, 2, -1, 4], (len(near), 4))
        predicted_boxes[: len(near)] = truth.boxes[near] + jitter
        images[: len(near)], labels[: len(near)] = truth.images[near], truth.labels[near]
    predicted_boxes[:, 2:] = np.maximum(predicted_boxes[:, 2:], 0)
    scores = rng.integers(0, 6, detections) / 5 if seed % 2 else rng.random(detections)
    return truth, Predictions(images=images, labels=labels, boxes=predicted_boxes, scores=scores)


def crowded_split(seed: int) -> tuple[GroundTruth, Predictions]:
    """More than 100 detections of one class on one image."""
    truth, predictions = random_split(seed)
    rng = np.random.default_rng(seed + 10_000)
    rows = rng.integers(0, max(len(predictions.scores), 1), 260 if len(predictions.scores) else 0)
    many = predictions.take(rows)
    return truth, Predictions(
        images=np.zeros(len(rows), dtype=np.int64),
        labels=np.zeros(len(rows), dtype=np.int64),
        boxes=many.boxes,
        scores=rng.integers(0, 40, len(rows)) / 40,
    )


def one_error_of_each_type(make_index: MakeIndex) -> tuple[Overlaps, MatchResult, CrossClassPairs]:
    """Two classes, six objects side by side; a true positive, one error per type, an ignored detection."""
    at = [[100 * i, 0, 100 * i + 50, 50] for i in range(6)]
    index = make_index((at, [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]))
    detections = [
        (at[0], 0.95, 0),  # true positive
        (at[0], 0.85, 0),  # duplicate of it
        ([100, 0, 150, 20], 0.75, 0),  # localization: IoU 0.4 with the second
        (at[2], 0.65, 0),  # classification: the third is of class 1
        ([300, 0, 350, 20], 0.55, 0),  # both: IoU 0.4 with the fourth, of class 1
        ([0, 100, 50, 150], 0.45, 1),  # background
        (at[5], 0.99, 0),  # ignored: a difficult object
    ]
    boxes, scores, labels = zip(*detections, strict=True)
    overlaps = Overlaps.of_index(index, SplitDetections.of_image(0, boxes, scores, labels), 2)
    result = MatchResult.of(overlaps, match(overlaps))
    return overlaps, result, CrossClassPairs.of(overlaps, result)
