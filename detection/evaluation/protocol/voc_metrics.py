"""VOC's average precision at IoU 0.5, as in the devkit's `VOCevaldet.m`.

The devkit's corners are 1-based and inclusive, so a width there is `xmax - xmin + 1`. Ours are 0-based and
half-open (`x1 = xmin - 1`, `x2 = xmax`): `x2 - x1` is the same width and includes the devkit's `+ 1`.

Letters: D detections, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.evaluation.protocol.overlaps import Overlaps, best_of_each
from detection.evaluation.protocol.results import SplitDetections

MIN_IOU = 0.5
RECALLS = np.arange(0.0, 1.1, 0.1)
"""[11] recalls, with the devkit's rounding errors: 0.1 * 3 is slightly above 0.3 there too."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocMatches:
    """VOC's matching of every detection, sorted by class and descending score."""

    order: NDArray[np.int64]
    """[D] indices into `Overlaps.predictions`."""
    true_positive: NDArray[np.bool_]
    """[D] true positives."""
    false_positive: NDArray[np.bool_]
    """[D] false positives; neither: on a difficult or crowd object."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocScore:
    """Average precision by VOC's two definitions; NaN for a class without objects."""

    ap_11pt: NDArray[np.float64]
    """[C] mean of the greatest precision at recall >= 0, 0.1, …, 1 (VOC2007)."""
    ap_area: NDArray[np.float64]
    """[C] area under the monotone precision-recall curve (VOC2010 and later)."""

    @property
    def stats(self) -> dict[str, float]:
        """Means over the classes that have objects: `voc_ap50_11pt`, `voc_ap50_area`."""
        return {"voc_ap50_11pt": _mean(self.ap_11pt), "voc_ap50_area": _mean(self.ap_area)}


def score(index: Index, detections: SplitDetections, classes: Sequence[str]) -> VocScore:
    """Score detections by VOC's protocol.

    In order of descending score, each detection takes the object of its class with the greatest IoU. It is a
    true positive if that IoU is at least 0.5 and the object is still free, it does not count on a difficult
    or crowd object, and it is a false positive otherwise. Equal scores keep the order of `detections`.

    Args:
        index: Ground truth.
        detections: Detections on its images.
        classes: Names, in label order.
    """
    return score_overlaps(Overlaps.of_index(index, detections, len(classes)))


def score_overlaps(overlaps: Overlaps) -> VocScore:
    """Score detections that are compared with the ground truth already."""
    return score_matches(overlaps, match(overlaps))


def match(overlaps: Overlaps, *, strict: bool = False, unstable: bool = False, min_iou: float = MIN_IOU) -> VocMatches:
    """Match detections with objects as `VOCevaldet.m` does.

    Args:
        overlaps: Objects and detections.
        strict: Count an IoU of exactly `min_iou` as a false positive, as Python translations of the devkit do. The
            devkit itself requires "at least" 0.5.
        unstable: Order equal scores of a class as `np.argsort(-scores)` does, as those translations do: the
            sixth digit then depends on numpy's version and the processor. The devkit's sort keeps the order
            of the file.
        min_iou: IoU of a true positive; 0.5 in VOC.
    """
    order = _by_score(overlaps, unstable=unstable)
    true_positive, false_positive = (flags[order] for flags in _match(overlaps, order, min_iou, strict=strict))
    return VocMatches(order=order, true_positive=true_positive, false_positive=false_positive)


def score_matches(overlaps: Overlaps, matches: VocMatches) -> VocScore:
    """Score matched detections."""
    labels, truth = overlaps.predictions.labels[matches.order], overlaps.ground_truth
    objects = np.bincount(truth.labels[~truth.ignored], minlength=overlaps.num_classes)
    starts = np.searchsorted(labels, np.arange(overlaps.num_classes + 1))
    ap_11pt, ap_area = np.full((2, overlaps.num_classes), np.nan)
    for label in np.flatnonzero(objects):
        of_class = slice(starts[label], starts[label + 1])
        true, false = np.cumsum(matches.true_positive[of_class]), np.cumsum(matches.false_positive[of_class])
        recall = true / objects[label]
        precision = true / np.maximum(true + false, 1)
        ap_11pt[label] = average_11pt(recall, precision)
        ap_area[label] = average_area(recall, precision)
    return VocScore(ap_11pt=ap_11pt, ap_area=ap_area)


def average_11pt(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """VOC2007's average precision (Everingham et al. 2010, section 4.2).

    Args:
        recall: [D] ascending.
        precision: [D] at those recalls.
    """
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, RECALLS, side="left")].mean())


def average_area(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Average precision since VOC2010: the area under precision made monotone (`VOCap.m`).

    Args:
        recall: [D] ascending.
        precision: [D] at those recalls.
    """
    widths = np.diff(recall, prepend=0.0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(widths * envelope))


def _by_score(overlaps: Overlaps, *, unstable: bool) -> NDArray[np.int64]:
    """[D] indices into `Overlaps.predictions` by class and descending score, then in input order."""
    labels, scores = overlaps.predictions.labels, overlaps.predictions.scores
    if not unstable:
        return np.lexsort((overlaps.detection_order, -scores, labels))
    as_given = np.lexsort((overlaps.detection_order, labels))
    starts = np.searchsorted(labels[as_given], np.arange(overlaps.num_classes + 1))
    parts = [as_given[low:high] for low, high in pairwise(starts)]
    return np.concatenate([as_given[:0], *(part[np.argsort(-scores[part])] for part in parts)])


def _match(
    overlaps: Overlaps, order: NDArray[np.int64], min_iou: float, *, strict: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[D] true positives and [D] false positives; neither: on a difficult or crowd object."""
    count, ignored = len(overlaps.rank), overlaps.ground_truth.ignored
    best, nearest = best_of_each(overlaps.detection, overlaps.object, overlaps.iou, count)
    hit = best > min_iou if strict else (best >= min_iou) & (best > 0)
    on_counted = hit & ~ignored[nearest] if len(ignored) else hit
    candidates = order[on_counted[order]]
    _, first = np.unique(nearest[candidates], return_index=True)
    true_positive = np.zeros(count, dtype=np.bool_)
    true_positive[candidates[first]] = True
    return true_positive, (on_counted | ~hit) & ~true_positive


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
