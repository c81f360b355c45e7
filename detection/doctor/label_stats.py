"""Label statistics that make a dataset hard without being problems: rare classes, overlapping labels.

Letters: C classes, T objects, P pairs of objects of one image.

Reliability of metrics: size of val and test, missing classes, class names that look misspelled.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.params.datasets import Dataset, ShapesDataset, VocDataset
from detection.text import listed

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


MAX_MARGIN = 0.1
"""Margin of AP50 above which a split is too small: about the AP50 gap between SSD300 and RetinaNet on COCO
(0.43 and 0.55 in their papers). It takes about 100 objects, of one class or of twenty equally frequent."""
MISSPELLED_RATIO = 100
"""A class with so many times fewer objects than one of nearly the same name counts as misspelled."""
CONSEQUENCES = {
    "val": "the choice of the best checkpoint is mostly noise",
    "test": "detectors with smaller differences cannot be compared",
}


def ap50_margin(index: Index, classes: int) -> float:
    """Half width of the 95 % interval of AP50 on a split, compared with an infinite number of such images.

    AP is close to the recall of a class, and a fraction of n objects has a standard error of at most
    sqrt(1/4 / n); the metric is the mean over the classes. The estimate needs no detections. For a detector
    with AP50 0.74 on VOC2007 test, random subsets of 20 to 1,000 images scatter 0.7 to 1.1 times as far
    (with 19 classes, 5, 3 and 1).

    Args:
        index: The split; difficult objects and crowds do not count.
        classes: Number of classes of the dataset.

    Returns:
        The margin in AP; NaN without objects.
    """
    counts = np.bincount(index.labels[~(index.difficult | index.crowd)], minlength=classes)
    counts = counts[counts > 0]
    return 1.96 * math.sqrt((0.25 / counts).sum()) / len(counts) if len(counts) else math.nan


def reliability_warnings(
    name: str, dataset: Dataset, splits: Mapping[str, Index], classes: tuple[str, ...]
) -> list[str]:
    """Warnings about metrics, one per line: few objects, missing classes, misspelled classes.

    Args:
        name: Name of the dataset in params.yaml.
        dataset: Its entry; splits that it neither lists nor holds out are not checked.
        splits: Indexes of `train`, `val` and `test`.
        classes: Class names in label order.
    """
    trained = np.bincount(splits["train"].labels, minlength=len(classes)) > 0
    holds_out = not isinstance(dataset, ShapesDataset) and dataset.holdout_fraction > 0
    lines = _alike(classes)
    if isinstance(dataset, VocDataset) and dataset.classes is None:  # other datasets list their classes
        labels = np.concatenate([index.labels for index in splits.values()])
        lines += _misspelled(name, classes, np.bincount(labels, minlength=len(classes)).tolist())
    for split, consequence in CONSEQUENCES.items():
        index, is_listed = splits[split], bool(getattr(dataset, split))
        if not is_listed and not holds_out:
            continue
        size = f"{split} ({len(index):,} images, {len(index.labels):,} objects)"
        fix = f"add images to {split}" if is_listed else f"add images, or raise datasets.{name}.holdout_fraction"
        margin = ap50_margin(index, len(classes))
        if math.isnan(margin):
            lines.append(f"{size} has no object to evaluate; {fix}")
            continue
        if margin > MAX_MARGIN:
            lines.append(f"{size} is too small: AP50 ± {margin:.2f} by chance, {consequence}; {fix}")
        missing = np.flatnonzero(trained & (np.bincount(index.labels, minlength=len(classes)) == 0))
        if len(missing):
            lines.append(
                f"{split} has no object of {len(missing)} of the {trained.sum()} classes of train "
                f"({listed([classes[label] for label in missing])}): they are not evaluated"
            )
    return lines


def _alike(classes: tuple[str, ...]) -> list[str]:
    """Warnings about class names that differ only in letter case, blanks, hyphens or underscores."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(re.sub(r"[\s_-]", "", name).casefold(), []).append(name)
    return [
        f"classes {' and '.join(group)} differ only in letter case, blanks, - or _: merge them in the annotations"
        for group in groups.values()
        if len(group) > 1
    ]


def _misspelled(name: str, classes: tuple[str, ...], counts: list[int]) -> list[str]:
    """Warnings about class names similar to those of classes with far more objects."""
    lines = []
    for rare, count in zip(classes, counts, strict=True):
        common = [c for c, n in zip(classes, counts, strict=True) if n >= MISSPELLED_RATIO * count > 0]
        lower = {one.lower(): one for one in common}
        for near in get_close_matches(rare.lower(), lower, n=1):
            lines.append(
                f"class {rare} ({count} objects) looks like a misspelled {lower[near]}: fix the annotations; "
                f"with a list at datasets.{name}.classes any other name is a problem"
            )
    return lines
