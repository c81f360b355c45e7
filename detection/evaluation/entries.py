"""What a detector finds on one picture, as plain values that people and JSON can read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.models.protocol import Detections


def at_least(found: Detections, threshold: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes [M, 4], scores [M] and labels [M] of the detections that score `threshold` or more."""
    kept = found.scores >= threshold
    return tuple(part[kept].numpy() for part in (found.boxes, found.scores, found.labels))  # type: ignore[return-value]


def entries(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """One `{box, label, class, score}` a detection.

    Args:
        boxes: [M, 4] `x1, y1, x2, y2`, pixels of the picture as stored, 0-based, half-open; written to 0.01.
        scores: [M], written to 0.0001.
        labels: [M], counted from 0.
        classes: Names, in label order.
    """
    return [
        {
            "box": [round(float(side), 2) for side in box],
            "label": int(label),
            "class": classes[int(label)],
            "score": round(float(score), 4),
        }
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
