"""VOC's average precision at IoU 0.5, as the devkit's `VOCevaldet.m` counts it.

The devkit's corners are 1-based and inclusive, so a side there is `xmax - xmin + 1`. Ours are 0-based and
half-open (`x1 = xmin - 1`, `x2 = xmax`): `x2 - x1` is the same side, and the devkit's `+ 1` is already in it.

Letters: D detections, T ground-truth boxes, C classes, P pairs of a detection and a box of the same class on
the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.evaluation.protocol.overlaps import Overlaps, best_of_each
from detection.evaluation.protocol.results import SplitDetections

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


def score(index: Index, results: SplitDetections, classes: Sequence[str]) -> VocScore:
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
    return score_overlaps(Overlaps.of_index(index, results, len(classes)))


def score_overlaps(overlaps: Overlaps, *, strict: bool = False, unstable: bool = False) -> VocScore:
    """Score what was compared already.

    Args:
        overlaps: Objects and detections.
        strict: A detection on half of an object exactly is wrong: what the devkit's translations to Python
            do, where the devkit itself says "at least".
        unstable: Leave equal scores of a class as `np.argsort(-scores)` leaves them, which is how those
            translations sort: another numpy or another processor gives another order and other sixth digits.
            The devkit's sort, and ours, keeps the order of the file.
    """
    truth, found = overlaps.ground_truth, overlaps.predictions
    objects = np.bincount(truth.labels[~truth.ignored], minlength=overlaps.num_classes)
    order = _best_first(overlaps, unstable=unstable)
    right, wrong = (judged[order] for judged in _judge(overlaps, order, strict=strict))
    starts = np.searchsorted(found.labels[order], np.arange(overlaps.num_classes + 1))
    ap_11pt, ap_area = np.full((2, overlaps.num_classes), np.nan)
    for label in np.flatnonzero(objects):
        mine = slice(starts[label], starts[label + 1])
        true, false = np.cumsum(right[mine]), np.cumsum(wrong[mine])
        recall = true / objects[label]
        precision = true / np.maximum(true + false, 1)
        ap_11pt[label] = average_11pt(recall, precision)
        ap_area[label] = average_area(recall, precision)
    return VocScore(ap_11pt=ap_11pt, ap_area=ap_area)


def average_11pt(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """VOC2007's average precision (Everingham et al. 2010, section 4.2).

    Args:
        recall: [D], rising.
        precision: [D], at those recalls.
    """
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALLS, side="left")].mean())


def average_area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Average precision since VOC2010: the area under precision made monotone (`VOCap.m`).

    Args:
        recall: [D], rising.
        precision: [D], at those recalls.
    """
    widths = np.diff(recall, prepend=0.0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(widths * envelope))


def _best_first(overlaps: Overlaps, *, unstable: bool) -> NDArray[np.int64]:
    """[D] rows of `Overlaps.predictions`: by class, then by descending score, equal ones as they came."""
    found = overlaps.predictions
    if not unstable:
        return np.lexsort((overlaps.detection_order, -found.scores, found.labels))
    as_given = np.lexsort((overlaps.detection_order, found.labels))
    starts = np.searchsorted(found.labels[as_given], np.arange(overlaps.num_classes + 1))
    parts = [as_given[low:high] for low, high in pairwise(starts)]
    return np.concatenate([as_given[:0], *(part[np.argsort(-found.scores[part])] for part in parts)])


def _judge(
    overlaps: Overlaps, order: NDArray[np.int64], *, strict: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[D] right, and [D] wrong; neither: on a difficult or crowd object."""
    best, taken = best_of_each(
        overlaps.detection, overlaps.object, overlaps.iou, len(overlaps.detection_order)
    )
    ignored = overlaps.ground_truth.ignored
    hit = best > MIN_OVERLAP if strict else best >= MIN_OVERLAP
    rightful = hit & ~ignored[taken] if len(ignored) else hit
    candidates = order[rightful[order]]
    _, first = np.unique(taken[candidates], return_index=True)
    right = np.zeros(len(overlaps.detection_order), dtype=np.bool_)
    right[candidates[first]] = True
    return right, (rightful | ~hit) & ~right


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
