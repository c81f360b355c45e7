"""COCO's greedy matching, at ten IoU thresholds and in four ranges of area at once.

pycocotools runs the same loop over detections and objects forty times for every picture and class. Its state
is one bit a run: is this detection matched, is this object taken. Here forty such bits are one integer, bit
`10 * area range + threshold`, and one pass over the pairs of the sparse overlap does all runs.

Letters: D detections, T objects, P pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.overlaps import Overlaps

Bits = NDArray[np.int64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]], dtype=np.float64)
"""Square pixels, both ends included: all, small, medium, large."""
MAX_DETECTIONS = 100
"""Of one class on one picture; the best scores are kept."""
EVERY_THRESHOLD = (1 << len(THRESHOLDS)) - 1
LOWEST = 1
"""The bit of IoU 0.5 and objects of every size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """What COCO's matching says of every detection of an `Overlaps`, in its order."""

    matched: Bits
    """[D] the detection has an object, of whatever kind."""
    ignored: Bits
    """[D] it does not count: on an ignored object, or on none while its own area is out of range."""
    object: NDArray[np.int64]
    """[D] the object it has at IoU 0.5 and among all sizes, a row of `Overlaps.ground_truth`; -1: none."""

    @property
    def true_positive(self) -> Bits:
        """[D] true positives."""
        return self.matched & ~self.ignored

    @property
    def false_positive(self) -> Bits:
        """[D] false positives; of detections beyond `MAX_DETECTIONS` it means nothing."""
        return ~self.matched & ~self.ignored


def area_range_bits(areas: NDArray[np.float64]) -> Bits:
    """The bits of those ranges that hold an area, at every threshold."""
    bits = np.zeros(len(areas), dtype=np.int64)
    for a, (low, high) in enumerate(AREAS.tolist()):
        bits[(areas >= low) & (areas <= high)] |= EVERY_THRESHOLD << (len(THRESHOLDS) * a)
    return bits


def match(overlaps: Overlaps) -> Matches:
    """Match detections with objects as `COCOeval.evaluateImg` does.

    Best score first, each detection takes the object that it overlaps most and that is still free (a crowd
    always is), the later in the file of equals; an ignored one, or one out of the range of areas, only if no
    other is left.
    """
    matched, ignored, taken = np.empty((3, len(overlaps.predictions.scores)), dtype=np.int64)
    for part, rows, first in overlaps.parts():
        one = _match(part)
        matched[rows], ignored[rows] = one.matched, one.ignored
        taken[rows] = np.where(one.object >= 0, one.object + first, -1)
    return Matches(matched=matched, ignored=ignored, object=taken)


def _match(overlaps: Overlaps) -> Matches:
    """Of a few pictures."""
    truth, found = overlaps.ground_truth, overlaps.predictions
    counts = np.where(truth.ignored, 0, area_range_bits(truth.areas))
    pairs = np.flatnonzero(
        (overlaps.coco_iou >= THRESHOLDS[0]) & (overlaps.rank[overlaps.detection] < MAX_DETECTIONS)
    )
    detection, thing, cover = overlaps.detection[pairs], overlaps.object[pairs], overlaps.coco_iou[pairs]
    reached = _reached(cover)

    matched, ignored = np.zeros((2, len(found.scores)), dtype=np.int64)
    taken = np.full(len(found.scores), -1)
    rivals = np.bincount(thing, minlength=len(truth.areas))
    choices = np.bincount(detection, minlength=len(found.scores))
    alone = (choices[detection] == 1) & ((rivals[thing] == 1) | truth.ignored[thing])
    matched[detection[alone]] = reached[alone]
    ignored[detection[alone]] = reached[alone] & ~counts[thing[alone]]
    taken[detection[alone]] = thing[alone]  # each reaches 0.5

    rest = np.flatnonzero(~alone)
    _take_turns(
        (detection[rest], thing[rest], cover[rest], reached[rest]),
        counts,
        truth.ignored,
        matched,
        ignored,
        taken,
    )
    outside = ~area_range_bits(found.boxes[:, 2] * found.boxes[:, 3])
    return Matches(matched=matched, ignored=ignored | (outside & ~matched), object=taken)


def _reached(cover: NDArray[np.float64]) -> Bits:
    """[P] the bits of the thresholds that an overlap reaches, in every range of area."""
    thresholds = np.searchsorted(THRESHOLDS, cover, side="right")
    everywhere = np.sum(1 << (len(THRESHOLDS) * np.arange(len(AREAS))))
    bits: Bits = ((1 << thresholds) - 1) * everywhere
    return bits


def _take_turns(
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], Bits],
    counts: Bits,
    crowd: NDArray[np.bool_],
    matched: Bits,
    ignored: Bits,
    taken: NDArray[np.int64],
) -> None:
    """Settle the pairs whose object or detection has others; writes into the last three.

    A pair comes up twice: among the runs where its object counts, and behind all of those, where it does not.
    """
    detection, thing, cover, reached = (np.concatenate([column, column]) for column in pairs)
    late = np.repeat([False, True], len(pairs[0]))
    reached &= np.where(late, ~counts[thing], counts[thing])
    kept = np.flatnonzero(reached)
    order = kept[np.lexsort((-thing[kept], -cover[kept], late[kept], detection[kept]))]
    numbers, place = np.unique(thing[order], return_inverse=True)
    free = [-1] * len(numbers)  # all bits set
    closes = np.where(crowd[numbers], 0, -1).tolist()
    columns = (detection[order], place, numbers[place], reached[order], late[order])
    current, open_runs, has, skips, first = -1, 0, 0, 0, -1
    for d, i, t, bits, is_late in zip(*(column.tolist() for column in columns), strict=True):
        if d != current:
            if has:
                matched[current], ignored[current], taken[current] = has, skips, first
            current, open_runs, has, skips, first = d, -1, 0, 0, -1
        won = bits & open_runs & free[i]
        if won:
            open_runs &= ~won
            free[i] &= ~(won & closes[i])
            has |= won
            if is_late:
                skips |= won
            if won & LOWEST:
                first = t
    if has:
        matched[current], ignored[current], taken[current] = has, skips, first
