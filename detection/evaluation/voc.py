"""VOC's average precision at IoU 0.5, as the devkit's `VOCevaldet.m` counts it.

The devkit's corners are 1-based and inclusive, so a side there is `xmax - xmin + 1`. Ours are 0-based and
half-open (`x1 = xmin - 1`, `x2 = xmax`): `x2 - x1` is the same side, and the devkit's `+ 1` is already in it.

Letters: D detections, T ground-truth boxes, C classes, P pairs of a detection and a box of the same class on
the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.evaluation.results import Results

MIN_OVERLAP = 0.5
RECALLS = np.arange(0.0, 1.1, 0.1)
"""[11], rounding errors included: 0.1 * 3 is a hair above 0.3 in the devkit too."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocScore:
    """Average precision by VOC's two definitions; NaN for a class without objects to find."""

    ap_11pt: NDArray[np.float64]
    """[C] mean of the best precision at recall >= 0, 0.1, …, 1 (VOC2007)."""
    ap_area: NDArray[np.float64]
    """[C] area under the monotone precision-recall curve (VOC2010 and later)."""

    @property
    def stats(self) -> dict[str, float]:
        """Means over the classes that have objects: `voc_ap50_11pt`, `voc_ap50_area`."""
        return {"voc_ap50_11pt": _mean(self.ap_11pt), "voc_ap50_area": _mean(self.ap_area)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What VOC's matching at IoU 0.5 says of each detection and each object."""

    right: NDArray[np.bool_]
    """[D], in the order of the results; neither right nor wrong: on a difficult or crowd object."""
    wrong: NDArray[np.bool_]
    """[D]."""
    found: NDArray[np.bool_]
    """[T], the object has a right detection."""


def score(index: Index, results: Results, classes: Sequence[str]) -> VocScore:
    """Score detections by VOC's protocol.

    Best score first, each detection takes the object of its class that it overlaps most. It is right if that
    overlap is at least 0.5 and nothing took the object before; on a difficult (or crowd) object it does not
    count at all; otherwise it is wrong. Of equal scores, the earlier in `results` comes first.

    Args:
        index: The ground truth.
        results: Detections on its pictures.
        classes: Names; their number is what matters.

    Returns:
        Average precision per class, and the means.
    """
    objects = np.bincount(index.labels[_counted(index)], minlength=len(classes))
    results = results.select(np.argsort(-results.scores, kind="stable"))
    judged = judge(index, results)
    ap_11pt, ap_area = np.full(len(classes), np.nan), np.full(len(classes), np.nan)
    for label in np.flatnonzero(objects[: len(classes)]):
        mine = results.labels == label
        true, false = np.cumsum(judged.right[mine]), np.cumsum(judged.wrong[mine])
        recall = true / objects[label]
        precision = true / np.maximum(true + false, 1)
        ap_11pt[label] = average_11pt(recall, precision)
        ap_area[label] = average_area(recall, precision)
    return VocScore(ap_11pt=ap_11pt, ap_area=ap_area)


def judge(index: Index, results: Results) -> Judgement:
    """Say of each detection whether it is right, wrong, or on an object that does not count; see `score`."""
    order = np.argsort(-results.scores, kind="stable")
    overlap, taken = _best_overlap(index, results)
    hit = overlap >= MIN_OVERLAP
    rightful = hit & _counted(index)[taken] if len(index.labels) else hit
    first = order[_first_of_each(taken[order], rightful[order])]
    right = np.zeros(len(results), dtype=np.bool_)
    right[first] = True
    found = np.zeros(len(index.labels), dtype=np.bool_)
    found[taken[first]] = True
    return Judgement(right=right, wrong=~right & (rightful | ~hit), found=found)


def average_11pt(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """VOC2007's average precision (Everingham et al. 2010, section 4.2).

    Args:
        recall: [D], rising.
        precision: [D], at those recalls.
    """
    reached = recall[None, :] >= RECALLS[:, None]  # [11, D]
    return float(np.where(reached, precision[None, :], 0.0).max(axis=1, initial=0.0).mean())


def average_area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Average precision since VOC2010: the area under precision made monotone (`VOCap.m`).

    Args:
        recall: [D], rising.
        precision: [D], at those recalls.
    """
    widths = np.diff(recall, prepend=0.0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(widths * envelope))


def _counted(index: Index) -> NDArray[np.bool_]:
    return ~(index.difficult | index.crowd)


def _first_of_each(taken: NDArray[np.int64], rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of the rows in the mask, the first that takes each object."""
    where = np.flatnonzero(rows)
    _, first = np.unique(taken[where], return_index=True)
    return where[first]


def _best_overlap(index: Index, results: Results) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Each detection's greatest IoU with an object of its class, [D], and that object, [D]; else 0 and 0."""
    best, taken = np.zeros(len(results)), np.zeros(len(results), dtype=np.int64)
    detection, thing = _pairs(index, results)
    if len(detection) == 0:
        return best, taken
    overlap = _iou(results.boxes[detection], index.boxes[thing])
    starts = np.flatnonzero(np.diff(detection, prepend=-1))  # pairs of one detection stand together
    greatest = np.maximum.reduceat(overlap, starts)
    best[detection[starts]] = greatest
    # The first of equals, as in the devkit: the lowest pair number among those that reach the maximum.
    lengths = np.diff(starts, append=len(detection))
    number = np.where(overlap == np.repeat(greatest, lengths), np.arange(len(overlap)), len(overlap))
    taken[detection[starts]] = thing[np.minimum.reduceat(number, starts)]
    return best, taken


def _pairs(index: Index, results: Results) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[P] detections, in order, and [P] objects of the same picture and class, in the index's order."""
    classes = int(max(index.labels.max(initial=0), results.labels.max(initial=0))) + 1
    key_of_object = np.repeat(np.arange(len(index)), np.diff(index.offsets)) * classes + index.labels
    key_of_detection = results.images * classes + results.labels
    order = np.argsort(key_of_object, kind="stable")
    start = np.searchsorted(key_of_object, key_of_detection, side="left", sorter=order)
    count = np.searchsorted(key_of_object, key_of_detection, side="right", sorter=order) - start
    detection = np.repeat(np.arange(len(results)), count)
    within = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    return detection, order[start[detection] + within]


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Row by row intersection over union of [P, 4] and [P, 4], in float64; 0 for two boxes without area."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = np.prod(np.maximum(sides, 0.0), axis=1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - common
    result: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return result


def _mean(values: NDArray[np.float64]) -> float:
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else float("nan")
