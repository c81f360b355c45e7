"""Whether scores will mean something: val and test large enough, no class that is another's name misspelt."""

import math
from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np

from detection.data.index import Index
from detection.params.datasets import Dataset, ShapesDataset, VocDataset
from detection.text import listed

UNSURE = 0.1
"""Margin of AP50 from which a split is called too small. A tenth is about what parts SSD300 from RetinaNet on
COCO (0.43 and 0.55 in their papers), so such a split does not tell a good detector from a poor one. About 100
objects are needed to stay below it: of one class, or of twenty of like frequency together."""
SELDOM = 100
"""A class that has so many times fewer objects than one with nearly its name is taken for a slip of it."""
MEANS = {
    "val": "which checkpoint is best is mostly luck",
    "test": "detectors that differ by less cannot be told apart",
}
"""What follows from a split that is too small."""


def ap50_margin(index: Index, classes: int) -> float:
    """How far a score on a split lies from the one on endlessly many such pictures, 19 times of 20.

    An AP is close to the share of a class's objects that are found, and a share among n objects has a
    standard error of at most sqrt(1/4 / n); the score is the mean of the classes'. An estimate, as nothing is
    scored: of a detector with an AP50 of 0.74 on VOC2007 test, random subsets of 20 to 1,000 of its pictures
    scatter 0.7 to 1.1 times as far (19 classes, 5, 3 and 1).

    Args:
        index: The split; difficult objects and crowds do not count.
        classes: How many the dataset has.

    Returns:
        Half the width of the interval, in AP; NaN without objects.
    """
    counts = np.bincount(index.labels[~(index.difficult | index.crowd)], minlength=classes)
    counts = counts[counts > 0]
    return 1.96 * math.sqrt((0.25 / counts).sum()) / len(counts) if len(counts) else math.nan


def reliability_warnings(
    name: str, dataset: Dataset, splits: Mapping[str, Index], classes: tuple[str, ...]
) -> list[str]:
    """What keeps scores from meaning something, a line each: few objects, missing and misspelt classes.

    Args:
        name: The dataset's in `params.yaml`.
        dataset: Its entry; a split that it neither names nor cuts is not missed.
        splits: `train`, `val` and `test`, as they were read.
        classes: Names, in label order.
    """
    learnt = np.bincount(splits["train"].labels, minlength=len(classes)) > 0
    cuts = not isinstance(dataset, ShapesDataset) and dataset.holdout_fraction > 0
    lines = []
    if isinstance(dataset, VocDataset) and dataset.classes is None:  # elsewhere somebody has listed them
        labels = np.concatenate([index.labels for index in splits.values()])
        lines = _slips(name, classes, np.bincount(labels, minlength=len(classes)).tolist())
    for split, consequence in MEANS.items():
        index, named = splits[split], bool(getattr(dataset, split))
        if not named and not cuts:
            continue
        size = f"{split} ({len(index):,} pictures, {len(index.labels):,} objects)"
        more = f"name more pictures for {split}" if named else f"raise datasets.{name}.holdout_fraction"
        off = ap50_margin(index, len(classes))
        if math.isnan(off):
            lines.append(f"{size} has nothing to score; {more}")
            continue
        if off > UNSURE:
            chance = f"chance alone moves its AP50 by up to {off:.2f}"
            lines.append(f"{size} is too small: {chance}, and {consequence}; {more}")
        missing = np.flatnonzero(learnt & (np.bincount(index.labels, minlength=len(classes)) == 0))
        if len(missing):
            lines.append(
                f"{split} has no object of {len(missing)} of the {learnt.sum()} classes of train "
                f"({listed([classes[label] for label in missing])}): its scores say nothing about them"
            )
    return lines


def _slips(name: str, classes: tuple[str, ...], counts: list[int]) -> list[str]:
    """Class names that look like misspelt ones: nearly those of classes with far more objects."""
    lines = []
    for rare, count in zip(classes, counts, strict=True):
        common = [c for c, n in zip(classes, counts, strict=True) if n >= SELDOM * count > 0]
        lower = {one.lower(): one for one in common}
        for near in get_close_matches(rare.lower(), lower, n=1):
            lines.append(
                f"class {rare} ({count} objects) looks like {lower[near]} misspelt: mend the annotations; "
                f"with the classes listed at datasets.{name}.classes any other name is a fault"
            )
    return lines
