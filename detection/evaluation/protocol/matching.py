"""COCO's greedy matching at ten IoU thresholds and in four area ranges at once.

pycocotools runs the same loop over detections and objects forty times per image and class, once per threshold
and area range. The state of a run is one bit: is this detection matched, is this object taken. Here the
forty bits are one integer, bit `10 * area range + threshold`, and one pass over the overlapping pairs does
all runs.

Letters: D detections, T objects, P pairs.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.overlaps import Overlaps, run_starts

Bits = NDArray[np.int64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
NUM_AREA_RANGES = 4
ALL_THRESHOLD_BITS = (1 << len(THRESHOLDS)) - 1
IOU_50_BIT = 1
"""Bit of IoU 0.5 and objects of all sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoLimits:
    """`maxDets` and `areaRng` of pycocotools."""

    detections: tuple[int, int, int] = (1, 10, 100)
    """Detections per class and image, ascending: the highest scores are kept. The last is that of AP."""
    area_sides: tuple[float, float] = (32, 96)
    """Sides in pixels of the squares between small, medium and large areas."""

    @property
    def most_detections(self) -> int:
        """Greatest number of detections per class and image."""
        return self.detections[-1]

    @property
    def area_ranges(self) -> NDArray[np.float64]:
        """[4, 2] square pixels, both ends included: all, small, medium, large."""
        low, high = (side**2 for side in self.area_sides)
        return np.array([[0, 1e5**2], [0, low], [low, high], [high, 1e5**2]], dtype=np.float64)


COCO_LIMITS = CocoLimits()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """COCO's matching of every detection of an `Overlaps`, in its order."""

    matched: Bits
    """[D] runs in which the detection has an object, ignored or not."""
    ignored: Bits
    """[D] runs in which the detection does not count: it has an ignored object, or none and its own area is
    out of range."""
    object: NDArray[np.int64]
    """[D] index into `Overlaps.ground_truth` of the object at IoU 0.5 and all sizes; -1: none."""
    limits: CocoLimits = field(default=COCO_LIMITS)

    @property
    def true_positive(self) -> Bits:
        """[D] runs in which the detection is a true positive."""
        return self.matched & ~self.ignored

    @property
    def false_positive(self) -> Bits:
        """[D] runs in which the detection is a false positive; undefined beyond `most_detections`."""
        return ~self.matched & ~self.ignored


def area_range_bits(areas: NDArray[np.float64], limits: CocoLimits) -> Bits:
    """Bits of the area ranges that contain an area, at every threshold."""
    bits = np.zeros(len(areas), dtype=np.int64)
    for a, (low, high) in enumerate(limits.area_ranges.tolist()):
        bits[(areas >= low) & (areas <= high)] |= ALL_THRESHOLD_BITS << (len(THRESHOLDS) * a)
    return bits


def match(overlaps: Overlaps, limits: CocoLimits = COCO_LIMITS) -> Matches:
    """Match detections with objects as `COCOeval.evaluateImg` does.

    In order of descending score, each detection takes the object of greatest overlap that is still free (a
    crowd always is); of equal overlaps, the last in the file. It takes an object that is ignored or out of
    the area range only if no other is left.

    Args:
        overlaps: Ground truth and detections.
        limits: Detections per class and image, and area ranges.
    """
    matched, ignored, taken = np.empty((3, len(overlaps.predictions.scores)), dtype=np.int64)
    for part, detections, first_object in overlaps.parts():
        matches = _match_part(part, limits)
        matched[detections], ignored[detections] = matches.matched, matches.ignored
        taken[detections] = np.where(matches.object >= 0, matches.object + first_object, -1)
    return Matches(matched=matched, ignored=ignored, object=taken, limits=limits)


def _match_part(overlaps: Overlaps, limits: CocoLimits) -> Matches:
    truth, predictions = overlaps.ground_truth, overlaps.predictions
    counted = np.where(truth.ignored, 0, area_range_bits(truth.areas, limits))
    ranked = overlaps.rank[overlaps.detection] < limits.most_detections
    pairs = np.flatnonzero((overlaps.coco_iou >= THRESHOLDS[0]) & ranked)
    detection, object_, iou = overlaps.detection[pairs], overlaps.object[pairs], overlaps.coco_iou[pairs]
    reached = _reached(iou)

    # A detection with one candidate that no other detection competes for is matched without the loop.
    matched, ignored = np.zeros((2, len(predictions.scores)), dtype=np.int64)
    taken = np.full(len(predictions.scores), -1)
    rivals = np.bincount(object_, minlength=len(truth.areas))
    candidates = np.bincount(detection, minlength=len(predictions.scores))
    alone = (candidates[detection] == 1) & ((rivals[object_] == 1) | truth.ignored[object_])
    matched[detection[alone]] = reached[alone]
    ignored[detection[alone]] = reached[alone] & ~counted[object_[alone]]
    taken[detection[alone]] = object_[alone]  # every pair reaches 0.5

    rest = np.flatnonzero(~alone)
    groups = detection[rest] - overlaps.rank[detection[rest]]  # first detection of the image and class
    contested = (detection[rest], object_[rest], iou[rest], reached[rest], groups)
    _match_contested(contested, counted, truth.ignored, matched, ignored, taken)
    outside = ~area_range_bits(predictions.areas, limits)
    return Matches(matched=matched, ignored=ignored | (outside & ~matched), object=taken)


def _reached(iou: NDArray[np.float64]) -> Bits:
    """[P] bits of the thresholds that an overlap reaches, in every area range."""
    thresholds = np.searchsorted(THRESHOLDS, iou, side="right")
    area_ranges = np.sum(1 << (len(THRESHOLDS) * np.arange(NUM_AREA_RANGES)))
    bits: Bits = ((1 << thresholds) - 1) * area_ranges
    return bits


def _match_contested(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], Bits, NDArray[np.int64]],
    counted: Bits,
    crowd: NDArray[np.bool_],
    matched: Bits,
    ignored: Bits,
    taken: NDArray[np.int64],
) -> None:
    """Match pairs whose object or detection has several candidates; writes into the last three arguments.

    Each pair occurs twice: once with the runs in which its object counts, and behind all of those of the
    detection with the runs in which its object is ignored. Images and classes do not influence each other: a
    step visits the next pair of all of them.
    """
    detection, object_, iou, reached, groups = (np.concatenate([column, column]) for column in pairs)
    late = np.repeat([False, True], len(pairs[0]))
    reached &= np.where(late, ~counted[object_], counted[object_])
    kept = np.flatnonzero(reached)
    order = kept[np.lexsort((-object_[kept], -iou[kept], late[kept], detection[kept]))]
    detection, object_, reached, late = detection[order], object_[order], reached[order], late[order]
    starts = run_starts(groups[order])
    lengths = np.diff(starts)
    longest_first = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[longest_first], lengths[longest_first]
    active = np.searchsorted(-lengths, -np.arange(lengths.max(initial=0)), side="left")  # groups of each step
    is_first = np.diff(detection, prepend=-1) != 0
    open_runs, won = np.empty(len(lengths), dtype=np.int64), np.empty_like(reached)
    free = np.full(len(counted), -1)  # all bits set
    for step, count in enumerate(active.tolist()):
        pairs_now = starts[:count] + step
        objects = object_[pairs_now]
        still_open = np.where(is_first[pairs_now], -1, open_runs[:count])
        now = reached[pairs_now] & still_open & free[objects]
        open_runs[:count] = still_open & ~now
        free[objects] &= np.where(crowd[objects], -1, ~now)
        won[pairs_now] = now
    first_pairs = np.flatnonzero(is_first)
    if len(first_pairs):
        matched[detection[first_pairs]] = np.bitwise_or.reduceat(won, first_pairs)
        ignored[detection[first_pairs]] = np.bitwise_or.reduceat(np.where(late, won, 0), first_pairs)
    firsts = np.flatnonzero(won & IOU_50_BIT)
    taken[detection[firsts]] = object_[firsts]
