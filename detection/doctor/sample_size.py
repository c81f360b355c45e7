"""Reliability of metrics: size of val and test, missing classes, class names that look misspelled."""

import math
from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np

from detection.data.index import Index
from detection.params.datasets import Dataset, ShapesDataset, VocDataset
from detection.text import listed

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
    lines = []
    if isinstance(dataset, VocDataset) and dataset.classes is None:  # other datasets list their classes
        labels = np.concatenate([index.labels for index in splits.values()])
        lines = _misspelled(name, classes, np.bincount(labels, minlength=len(classes)).tolist())
    for split, consequence in CONSEQUENCES.items():
        index, is_listed = splits[split], bool(getattr(dataset, split))
        if not is_listed and not holds_out:
            continue
        size = f"{split} ({len(index):,} images, {len(index.labels):,} objects)"
        fix = f"add images to {split}" if is_listed else f"raise datasets.{name}.holdout_fraction"
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
