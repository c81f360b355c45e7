"""Box arithmetic in numpy: float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open.

Letters: N, M boxes.
"""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def areas(boxes: Boxes) -> NDArray[np.float32]:
    """[N] areas of [N, 4] boxes in square pixels; 0 for an inverted box."""
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)  # [N, 2]
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float32)


def intersections(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """[N, M] intersection areas of `a` [N, 4] with `b` [M, 4]; 0 for boxes that only touch."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # [N, M, 2]
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # [N, M, 2]
    sides = np.clip(high - low, 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1], dtype=np.float32)


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """[N, M] intersection over union, 0 to 1; 0 where both boxes are empty.

    Invariant: `iou(a, b) == iou(b, a).T`.
    """
    intersection = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0))


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """Clip [N, 4] boxes to an image; a box outside it keeps no area.

    Invariant: `clip(clip(boxes, height, width), height, width) == clip(boxes, height, width)`.
    """
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, np.float32(0), limits)
