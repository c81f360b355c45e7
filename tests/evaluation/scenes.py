"""Generated objects and detections in which everything happens that can."""

import numpy as np

from detection.evaluation.protocol.overlaps import GroundTruth, Predictions

PICTURES, CLASSES = 6, 5
"""The last class never occurs, the one before has no objects."""


def scene(seed: int) -> tuple[GroundTruth, Predictions]:
    """Objects and detections full of what goes wrong: ties, crowds, copies, nothing, and 32 px on the dot."""
    rng = np.random.default_rng(seed)
    objects, detections = int(rng.integers(0, 40)), int(rng.integers(0, 130))

    def boxes(count: int) -> np.ndarray:
        if rng.random() < 0.5:  # a coarse grid: equal overlaps, copies, boxes without area
            return rng.integers(0, 12, (count, 4)) * float(rng.choice([1, 8, 16]))
        return np.concatenate([rng.uniform(0, 60, (count, 2)), rng.uniform(0, 80, (count, 2))], axis=1)

    truth_boxes, found_boxes = boxes(objects), boxes(detections)
    truth = GroundTruth(
        images=rng.integers(0, PICTURES, objects),
        labels=rng.integers(0, CLASSES - 2, objects),
        boxes=truth_boxes,
        areas=truth_boxes[:, 2] * truth_boxes[:, 3] * rng.choice([0.5, 1, 1.7], objects),
        ignored=rng.random(objects) < 0.2,
    )
    images, labels = rng.integers(0, PICTURES, detections), rng.integers(0, CLASSES - 1, detections)
    if objects:  # two thirds lie near an object
        near = rng.integers(0, objects, detections * 2 // 3)
        jitter = rng.choice([0, 0, 1, 2, -1, 4], (len(near), 4))
        found_boxes[: len(near)] = truth.boxes[near] + jitter
        images[: len(near)], labels[: len(near)] = truth.images[near], truth.labels[near]
    found_boxes[:, 2:] = np.maximum(found_boxes[:, 2:], 0)
    scores = rng.integers(0, 6, detections) / 5 if seed % 2 else rng.random(detections)
    return truth, Predictions(images=images, labels=labels, boxes=found_boxes, scores=scores)


def crowded(seed: int) -> tuple[GroundTruth, Predictions]:
    """More than 100 detections of one class on one picture."""
    truth, found = scene(seed)
    rng = np.random.default_rng(seed + 10_000)
    rows = rng.integers(0, max(len(found.scores), 1), 260 if len(found.scores) else 0)
    many = found.take(rows)
    return truth, Predictions(
        images=np.zeros(len(rows), dtype=np.int64),
        labels=np.zeros(len(rows), dtype=np.int64),
        boxes=many.boxes,
        scores=rng.integers(0, 40, len(rows)) / 40,
    )
