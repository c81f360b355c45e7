"""COCO's arrays of precision, recall and score, computed from matches.

pycocotools walks along all detections of a class 120 times (thresholds x area ranges x detection limits).
Precision, made monotone from the right, only changes at a true positive. Computing it there alone visits a
hundredth of the detections, with the same arithmetic and the same bits.

Letters: D detections, C classes, N true positives of one area range and limit, T = 10 IoU thresholds,
R = 101 recalls, A = 4 area ranges, M = 3 limits on detections.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.matching import (
    ALL_THRESHOLD_BITS,
    NUM_AREA_RANGES,
    THRESHOLDS,
    Matches,
    area_range_bits,
)
from detection.evaluation.protocol.overlaps import Overlaps, blocks

RECALLS = np.linspace(0.0, 1.0, 101)
"""[101] recalls at which COCO reads precision."""


class Arrays(NamedTuple):
    """Arrays of `COCOeval.eval`; -1 in classes without objects."""

    precision: NDArray[np.float64]
    """[T, R, C, A, M] precision at each recall."""
    recall: NDArray[np.float64]
    """[T, C, A, M] greatest recall."""
    scores: NDArray[np.float64]
    """[T, R, C, A, M] score at which each recall is reached."""


@dataclass(frozen=True, eq=False)
class _SortedDetections:
    """Detections of some classes under one detection limit, by class and descending score."""

    num_classes: int
    indices: NDArray[np.int64]
    """[D] indices into `Overlaps.predictions`."""
    ranks: NDArray[np.unsignedinteger]
    """[D] positions among those of the same image and class, at most the greatest limit."""
    labels: NDArray[np.int64]
    """[D] ascending, counted from the first of these classes."""
    matched: NDArray[np.int64]
    """[D] bits per run, as in `Matches`."""
    ignored: NDArray[np.int64]
    """[D] bits per run, as in `Matches`."""

    @classmethod
    def of(cls, overlaps: Overlaps, matches: Matches, indices: NDArray[np.int64], first: int, end: int) -> Self:
        """Detections at `indices`, of the classes from `first` to before `end`."""
        most = matches.limits.most_detections
        ranks = np.minimum(overlaps.rank.take(indices), most).astype(np.min_scalar_type(most))
        labels = overlaps.predictions.labels.take(indices) - first
        matched, ignored = matches.matched.take(indices), matches.ignored.take(indices)
        return cls(end - first, indices, ranks, labels, matched, ignored)

    def limited_to(self, limit: int) -> "_SortedDetections":
        """The first `limit` detections of each image and class."""
        kept = self.ranks < limit
        if kept.all():
            return self
        columns = ("indices", "ranks", "labels", "matched", "ignored")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """[C + 1] first detection of each class."""
        return np.searchsorted(self.labels, np.arange(self.num_classes + 1))

    @cached_property
    def candidates(self) -> NDArray[np.int64]:
        """Indices of detections that match in some run; the others are alike at every threshold."""
        return np.flatnonzero(self.matched)


class _RecallTargets(NamedTuple):
    """Number of objects of each class, and the true positives needed for each recall."""

    objects: NDArray[np.int64]
    """[C] number of objects."""
    needed: NDArray[np.int64]
    """[C, R] true positives needed to reach each recall, at least 1."""
    starts: NDArray[np.int64]
    """[C] first entry of each class in `bins`."""
    bins: NDArray[np.int64]
    """Last of the 101 recalls that the first, second, … true positive of a class reaches."""

    @classmethod
    def of(cls, objects: NDArray[np.int64]) -> "_RecallTargets":
        starts = np.cumsum(objects) - objects
        recall = (np.arange(objects.sum()) - np.repeat(starts, objects) + 1.0) / np.repeat(objects, objects)
        needed = np.ones((len(objects), len(RECALLS)), dtype=np.int64)
        for label in np.flatnonzero(objects):
            of_class = recall[starts[label] : starts[label] + objects[label]]
            needed[label] = np.searchsorted(of_class, RECALLS, side="left") + 1
        return cls(objects, needed, starts, np.searchsorted(RECALLS, recall, side="right") - 1)


def accumulate(overlaps: Overlaps, matches: Matches, *, for_stats: bool = False) -> Arrays:
    """Precision over recall of every class, as computed by `COCOeval.accumulate`.

    Args:
        overlaps: Objects, detections and their pairs.
        matches: Matching of the detections.
        for_stats: Compute only what COCO's twelve metrics read, in half the time and a sixth of the memory: precision
            under the greatest limit on detections (M = 1), and recall without sizes under the others. The rest is NaN.
    """
    num_classes, truth, limits = overlaps.num_classes, overlaps.ground_truth, matches.limits
    shape = (len(THRESHOLDS), len(RECALLS), num_classes, NUM_AREA_RANGES, len(limits.detections))
    curves = (*shape[:-1], 1) if for_stats else shape
    scores = np.broadcast_to(np.nan, shape) if for_stats else np.full(shape, -1.0)
    arrays = Arrays(np.full(curves, -1.0), np.full((shape[0], *shape[2:]), -1.0), scores)
    if for_stats:
        arrays.recall[:, :, 1:, :-1] = np.nan
    counted = np.where(truth.ignored, 0, area_range_bits(truth.areas, limits))
    objects = []  # per area range and class
    for a in range(NUM_AREA_RANGES):
        in_range = (counted >> (len(THRESHOLDS) * a)) & 1 == 1
        objects.append(np.bincount(truth.labels[in_range], minlength=num_classes))
    starts = np.append(0, np.cumsum(np.bincount(overlaps.predictions.labels, minlength=num_classes)))
    for first, end in blocks(starts):
        views = Arrays(*(column[..., first:end, :, :] for column in arrays))
        targets = [_RecallTargets.of(count[first:end]) for count in objects]
        indices = overlaps.by_score[starts[first] : starts[end]]
        detections = _SortedDetections.of(overlaps, matches, indices, first, end)
        for m, limit in enumerate(reversed(limits.detections), 1):
            detections = detections.limited_to(limit)
            for a in range(1 if for_stats and m > 1 else NUM_AREA_RANGES):
                _fill(views, a, -m, overlaps.predictions.scores, detections, targets[a], for_stats)
    return arrays


def _fill(
    arrays: Arrays,
    a: int,
    m: int,
    scores: NDArray[np.float64],
    detections: _SortedDetections,
    targets: _RecallTargets,
    for_stats: bool,
) -> None:
    """Write area range `a` under detection limit `m`, which counts from the greatest, -1, into the arrays."""
    shift, starts, candidates = len(THRESHOLDS) * a, detections.starts, detections.candidates
    candidate_labels = detections.labels[candidates]
    first = np.searchsorted(candidate_labels, np.arange(len(starts)))
    counted, matched = ~detections.ignored[candidates], detections.matched[candidates]
    true_positive = _per_threshold((matched & counted) >> shift)  # [T, candidates]
    false_positive = _per_threshold((~matched & counted) >> shift)
    t, position = np.nonzero(true_positive)  # [N], by threshold and class
    label = candidate_labels[position]

    num_classes = len(targets.objects)
    reached = np.bincount(t * num_classes + label, minlength=len(THRESHOLDS) * num_classes)
    true = np.arange(1, len(t) + 1) - (np.cumsum(reached) - reached)[t * num_classes + label]
    reached = reached.reshape(len(THRESHOLDS), num_classes)
    known = np.flatnonzero(targets.objects)
    arrays.recall[:, known, a, m] = reached[:, known] / targets.objects[known]
    if for_stats and m < -1:
        return
    false = _since_class_start(np.cumsum(false_positive, axis=1, dtype=np.int32), t, position, first[label])
    always_false = _bit(detections.ignored, shift) == 0
    always_false[candidates] = False
    before = np.zeros(len(always_false) + 1, dtype=np.int32)
    np.cumsum(always_false, out=before[1:])
    false += before[candidates[position]] - before[starts[label]]
    precision = true / (false.astype(np.float64) + true + np.spacing(1))

    best = np.zeros((*reached.shape, len(RECALLS)))
    np.maximum.at(best, (t, label, targets.bins[targets.starts[label] + true - 1]), precision)
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]

    arrays.precision[:, :, known, a, m] = best[:, known].transpose(0, 2, 1)
    if for_stats:
        return
    at_recall = _scores_at_recall(scores, detections, detections.indices[candidates[position]], reached, targets)
    arrays.scores[:, :, known, a, m] = at_recall[:, known].transpose(0, 2, 1)


def _per_threshold(bits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[T, n] lowest ten bits of each number."""
    few = (bits & ALL_THRESHOLD_BITS).astype(np.uint16)
    return (few >> np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None] & 1).astype(np.bool_)


def _bit(numbers: NDArray[np.int64], bit: int) -> NDArray[np.uint8]:
    """[n] nonzero where a bit is set; reads only the byte that holds it, as this runs over all detections."""
    octets = numbers.astype("<i8", copy=False).view(np.uint8)
    masked: NDArray[np.uint8] = octets[bit // 8 :: 8] & np.uint8(1 << bit % 8)
    return masked


def _since_class_start(
    total: NDArray[np.int32], t: NDArray[np.int64], position: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.int32]:
    """[N] running total at some positions minus its value before the class begins."""
    since: NDArray[np.int32] = total[t, position] - np.where(start > 0, total[t, start - 1], 0)
    return since


def _scores_at_recall(
    scores: NDArray[np.float64],
    detections: _SortedDetections,
    true_positives: NDArray[np.int64],
    reached: NDArray[np.int64],
    targets: _RecallTargets,
) -> NDArray[np.float64]:
    """[T, C, R] score of the detection that reaches a recall; recall 0 is reached by the first detection."""
    starts = (np.cumsum(reached) - reached.ravel()).reshape(reached.shape)
    is_reached = targets.needed <= reached[:, :, None]
    which = np.where(is_reached, starts[:, :, None] + targets.needed - 1, 0)
    at_recall = scores[true_positives][which] if len(true_positives) else np.zeros(which.shape)
    result = np.where(is_reached, at_recall, 0.0)
    some = np.flatnonzero(np.diff(detections.starts))
    result[:, some, 0] = scores[detections.indices[detections.starts[some]]]
    return result
