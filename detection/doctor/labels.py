"""What a dataset's labels make hard, though none of them is a fault: rare classes, overlapping labels.

Letters: C classes, T objects, P pairs of objects of one picture.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index

FEW = 20
"""Objects of a class in train, below which hardly anything is learnt."""
SAME = 0.9
"""IoU from which two boxes are taken for one object."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Balance:
    """How the objects of train are spread over the classes; difficult objects and crowds count too."""

    objects: NDArray[np.int64]
    """[C] in train."""
    pictures: NDArray[np.int64]
    """[C] of train that show the class."""
    few: list[int]
    """Classes with some objects in train, but fewer than `FEW`."""
    unlearnt: list[int]
    """Classes without an object in train that val or test have."""
    ratio: float
    """Objects of the most frequent class over those of the rarest that has any; NaN without objects."""


def balance(splits: Mapping[str, Index], classes: int) -> Balance:
    """Count the classes of a dataset.

    Args:
        splits: `train`, `val` and `test`; a split may be empty.
        classes: C.
    """
    counts = {name: np.bincount(index.labels, minlength=classes) for name, index in splits.items()}
    train, index = counts["train"], splits["train"]
    cells = np.unique(index.owners() * classes + index.labels)
    some = train > 0
    later = counts["val"] + counts["test"] > 0
    return Balance(
        objects=train,
        pictures=np.bincount(cells % classes, minlength=classes),
        few=np.flatnonzero(some & (train < FEW)).tolist(),
        unlearnt=np.flatnonzero(~some & later).tolist(),
        ratio=float(train.max() / train[some].min()) if some.any() else float("nan"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Objects of one picture that overlap; crowds are left out."""

    first: NDArray[np.int64]
    """[P] rows among the index's objects."""
    second: NDArray[np.int64]
    """[P] likewise; of the same picture, and later."""
    iou: NDArray[np.float64]
    """[P]."""
    labels: NDArray[np.int64]
    """[P, 2] classes of the two."""

    @property
    def twice(self) -> NDArray[np.int64]:
        """Pairs that look like one object labelled twice: of one class, with an IoU of `SAME` or more."""
        return np.flatnonzero((self.iou >= SAME) & (self.labels[:, 0] == self.labels[:, 1]))

    @property
    def two_names(self) -> NDArray[np.int64]:
        """Pairs that look like one object under two names."""
        return np.flatnonzero((self.iou >= SAME) & (self.labels[:, 0] != self.labels[:, 1]))

    def names(self) -> Counter[tuple[int, int]]:
        """How often each two classes share an object, the smaller label first."""
        return Counter((a, b) for a, b in np.sort(self.labels[self.two_names], axis=1).tolist())

    def lost_to_nms(self, threshold: float) -> int:
        """Objects that NMS drops even if each is detected exactly, because one of its class overlaps more.

        Detections of one score each, in the order of the file: other scores may save a few.
        """
        close = np.flatnonzero((self.iou > threshold) & (self.labels[:, 0] == self.labels[:, 1]))
        order = close[np.lexsort((self.second[close], self.first[close]))]
        dropped: set[int] = set()
        for first, second in zip(self.first[order].tolist(), self.second[order].tolist(), strict=True):
            if first not in dropped:
                dropped.add(second)
        return len(dropped)


def overlapping(index: Index, at_least: float) -> Pairs:
    """Find all pairs of objects of one picture with an IoU of `at_least` or more."""
    rows = np.flatnonzero(~index.crowd)
    owners, boxes = index.owners()[rows], index.boxes[rows].astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    left = np.arange(len(rows))
    for step in range(1, len(rows)):  # each object with the one that stands `step` behind it in its picture
        left = left[left + step < len(rows)]
        left = left[owners[left] == owners[left + step]]
        if not len(left):
            break
        a, b = boxes[left], boxes[left + step]
        sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
        common = sides[:, 0] * sides[:, 1]
        union = areas[left] + areas[left + step] - common
        iou = np.divide(common, union, out=np.zeros(len(left)), where=union > 0)
        near = iou >= at_least
        parts.append((rows[left[near]], rows[left[near] + step], iou[near]))
    first, second, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    labels = np.stack([index.labels[first], index.labels[second]], axis=1)
    return Pairs(first=first, second=second, iou=iou, labels=labels)
