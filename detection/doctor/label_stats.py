"""Label statistics that make a dataset hard without being problems: rare classes, overlapping labels.

Letters: C classes, T objects, P pairs of objects of one image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index

RARE_OBJECTS = 20
"""Number of training objects below which a class is rare."""
SAME_OBJECT_IOU = 0.9
"""IoU from which two boxes count as one object."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balance:
    """Class balance of train, including difficult objects and crowds."""

    objects: NDArray[np.int64]
    """[C] objects of each class."""
    images: NDArray[np.int64]
    """[C] images with the class."""
    rare: list[int]
    """Classes with some, but fewer than `RARE_OBJECTS` objects."""
    untrained: list[int]
    """Classes without objects in train that occur in val or test."""
    ratio: float
    """Objects of the most frequent class over those of the least frequent one; NaN without objects."""


def balance(splits: Mapping[str, Index], classes: int) -> Balance:
    """Class balance of a dataset with C classes; the splits `val` and `test` may be empty."""
    counts = {name: np.bincount(index.labels, minlength=classes) for name, index in splits.items()}
    train, index = counts["train"], splits["train"]
    image_classes = np.unique(index.image_rows() * classes + index.labels)
    present = train > 0
    return Balance(
        objects=train,
        images=np.bincount(image_classes % classes, minlength=classes),
        rare=np.flatnonzero(present & (train < RARE_OBJECTS)).tolist(),
        untrained=np.flatnonzero(~present & (counts["val"] + counts["test"] > 0)).tolist(),
        ratio=float(train.max() / train[present].min()) if present.any() else float("nan"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of overlapping objects of one image, without crowds."""

    first: NDArray[np.int64]
    """[P] rows of the first objects in the index."""
    second: NDArray[np.int64]
    """[P] rows of the second objects, above the first."""
    iou: NDArray[np.float64]
    """[P]."""
    labels: NDArray[np.int64]
    """[P, 2] labels of both objects."""

    def same_object(self, same_class: bool) -> "Pairs":
        """Pairs that look like one object labeled twice, with the same class or with two classes."""
        keep = (self.iou >= SAME_OBJECT_IOU) & ((self.labels[:, 0] == self.labels[:, 1]) == same_class)
        return Pairs(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def lost_to_nms(self, threshold: float) -> int:
        """Objects that NMS drops even if the detector is perfect, for equal scores in index order."""
        close = np.flatnonzero((self.iou > threshold) & (self.labels[:, 0] == self.labels[:, 1]))
        order = close[np.lexsort((self.second[close], self.first[close]))]
        dropped: set[int] = set()
        for first, second in zip(self.first[order].tolist(), self.second[order].tolist(), strict=True):
            if first not in dropped:
                dropped.add(second)
        return len(dropped)


def overlapping_pairs(index: Index, min_iou: float) -> Pairs:
    """Find all pairs of objects of one image with an IoU of at least `min_iou`."""
    rows = np.flatnonzero(~index.crowd)
    images, boxes = index.image_rows()[rows], index.boxes[rows].astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    a = np.arange(len(rows))
    for step in range(1, len(rows)):  # all pairs of objects with `step` objects from one to the other
        a = a[a + step < len(rows)]
        a = a[images[a] == images[a + step]]
        if not len(a):
            break
        b = a + step
        low, high = np.maximum(boxes[a, :2], boxes[b, :2]), np.minimum(boxes[a, 2:], boxes[b, 2:])
        intersection = np.prod(np.clip(high - low, 0, None), axis=1)
        union = areas[a] + areas[b] - intersection
        iou = np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)
        keep = iou >= min_iou
        parts.append((rows[a[keep]], rows[b[keep]], iou[keep]))
    first, second, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    labels = np.stack([index.labels[first], index.labels[second]], axis=1)
    return Pairs(first=first, second=second, iou=iou, labels=labels)
