"""Arithmetic of boxes in numpy: float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open.

Letters: N, M boxes.
"""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def areas(boxes: Boxes) -> NDArray[np.float32]:
    """[N] areas in square pixels of [N, 4] boxes; an inverted box has none."""
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float32)


def intersections(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """[N, M] areas that each of `a` [N, 4] shares with each of `b` [M, 4]; touching edges share nothing."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])  # [N, M, 2]
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # [N, M, 2]
    sides = np.clip(high - low, 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1], dtype=np.float32)


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """[N, M] intersection over union, 0 to 1; 0 where both boxes are empty.

    Symmetric: `iou(a, b) == iou(b, a).T`.
    """
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """The parts of [N, 4] boxes inside a picture; a box wholly outside is left without area."""
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, np.float32(0), limits)
