"""From matches to COCO's arrays of precision, recall and score.

pycocotools walks along all detections of a class, 120 times (thresholds x areas x caps). Precision, made
monotone from the right, can only change where a detection is right, so it is computed there alone: a
hundredth of the places, the same arithmetic, the same bits.

Letters: D detections, C classes, N right detections of one area range and cap, T = 10 IoU thresholds,
R = 101 recalls, A = 4 ranges of area, M = 3 caps.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.matching import (
    AREAS,
    EVERY_THRESHOLD,
    THRESHOLDS,
    Matches,
    area_range_bits,
)
from detection.evaluation.protocol.ordering import blocks
from detection.evaluation.protocol.overlaps import Overlaps

RECALLS = np.linspace(0.0, 1.0, 101)
"""[101] recalls at which COCO reads precision."""
CAPS = (1, 10, 100)
"""Most detections of one class on one picture."""


class Arrays(NamedTuple):
    """`COCOeval.eval`; -1 in classes without objects to find."""

    precision: NDArray[np.float64]
    """[T, R, C, A, M]."""
    recall: NDArray[np.float64]
    """[T, C, A, M]."""
    scores: NDArray[np.float64]
    """[T, R, C, A, M] the score at which a recall is reached."""


@dataclass(frozen=True, eq=False)
class _Line:
    """The detections of some classes under one cap, class after class, the best score first."""

    classes: int
    rows: NDArray[np.int64]
    """[D] in `Overlaps.predictions`."""
    ranks: NDArray[np.uint8]
    """[D] places among those of the same picture and class, up to 255."""
    labels: NDArray[np.int64]
    """[D] rising, from 0 among these classes."""
    matched: NDArray[np.int64]
    """[D] bits of the runs, as in `Matches`."""
    ignored: NDArray[np.int64]
    """[D] likewise."""

    @classmethod
    def of(cls, overlaps: Overlaps, matches: Matches, rows: NDArray[np.int64], first: int, end: int) -> Self:
        """Those in some rows, of the classes from `first` to before `end`."""
        ranks = np.minimum(overlaps.rank.take(rows), 255).astype(np.uint8)
        labels = overlaps.predictions.labels.take(rows) - first
        return cls(end - first, rows, ranks, labels, matches.matched.take(rows), matches.ignored.take(rows))

    def under(self, cap: int) -> "_Line":
        """Those among the first `cap` of their picture and class."""
        kept = self.ranks < cap
        if kept.all():
            return self
        return replace(
            self,
            rows=self.rows[kept],
            ranks=self.ranks[kept],
            labels=self.labels[kept],
            matched=self.matched[kept],
            ignored=self.ignored[kept],
        )

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """[C + 1] where each class begins."""
        return np.searchsorted(self.labels, np.arange(self.classes + 1))

    @cached_property
    def touched(self) -> NDArray[np.int64]:
        """Places of those matched in some run; all others are wrong, or ignored, at every threshold alike."""
        return np.flatnonzero(self.matched)


def accumulate(overlaps: Overlaps, matches: Matches) -> Arrays:
    """Precision over recall of every class, as `COCOeval.accumulate` has it."""
    shape = (len(THRESHOLDS), len(RECALLS), overlaps.num_classes, len(AREAS), len(CAPS))
    arrays = Arrays(np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0), np.full(shape, -1.0))
    truth = overlaps.ground_truth
    counted = np.where(truth.ignored, 0, area_range_bits(truth.areas))
    objects = []  # of each range of area and class
    for a in range(len(AREAS)):
        here = (counted >> (len(THRESHOLDS) * a)) & 1 == 1
        objects.append(np.bincount(truth.labels[here], minlength=overlaps.num_classes))
    starts = np.append(0, np.cumsum(np.bincount(overlaps.predictions.labels, minlength=overlaps.num_classes)))
    for first, end in blocks(starts):
        mine = Arrays(*(column[..., first:end, :, :] for column in arrays))
        goals = [_Goal.of(count[first:end]) for count in objects]
        line = _Line.of(overlaps, matches, overlaps.by_score[starts[first] : starts[end]], first, end)
        for m, cap in reversed(list(enumerate(CAPS))):
            line = line.under(cap)
            for a in range(len(AREAS)):
                _fill(mine, a, m, overlaps.predictions.scores, line, goals[a])
    return arrays


class _Goal(NamedTuple):
    """How many objects each class has, and which of them brings which recall."""

    objects: NDArray[np.int64]
    """[C]."""
    needed: NDArray[np.int64]
    """[C, R] right detections until a recall is reached; at least 1."""
    starts: NDArray[np.int64]
    """[C] where each class begins in `bins`."""
    bins: NDArray[np.int64]
    """The last of the 101 recalls that the first, second, … right detection of a class reaches."""

    @classmethod
    def of(cls, objects: NDArray[np.int64]) -> "_Goal":
        starts = np.cumsum(objects) - objects
        recall = (np.arange(objects.sum()) - np.repeat(starts, objects) + 1.0) / np.repeat(objects, objects)
        needed = np.ones((len(objects), len(RECALLS)), dtype=np.int64)
        for label in np.flatnonzero(objects):
            mine = recall[starts[label] : starts[label] + objects[label]]
            needed[label] = np.searchsorted(mine, RECALLS, side="left") + 1
        return cls(objects, needed, starts, np.searchsorted(RECALLS, recall, side="right") - 1)


def _fill(arrays: Arrays, a: int, m: int, scores: NDArray[np.float64], line: _Line, goal: _Goal) -> None:
    """Write one range of area and one cap into the arrays."""
    low, starts, touched = len(THRESHOLDS) * a, line.starts, line.touched
    labels = line.labels[touched]
    first = np.searchsorted(labels, np.arange(len(starts)))
    counts, matched = ~line.ignored[touched], line.matched[touched]
    right = _spread((matched & counts) >> low)  # [T, touched]
    wrong = _spread((~matched & counts) >> low)
    t, place = np.nonzero(right)  # [N], class after class for each threshold
    label = labels[place]

    classes, shape = len(goal.objects), (len(THRESHOLDS), len(goal.objects), len(RECALLS))
    reached = np.bincount(t * classes + label, minlength=shape[0] * classes).reshape(shape[:2])
    true = np.arange(1, len(t) + 1) - (np.cumsum(reached) - reached.ravel())[t * classes + label]
    false = _since_start(np.cumsum(wrong, axis=1, dtype=np.int32), t, place, first[label])
    plain = _bit(line.ignored, low) == 0
    plain[touched] = False
    before = np.zeros(len(plain) + 1, dtype=np.int32)
    np.cumsum(plain, out=before[1:])
    false += before[touched[place]] - before[starts[label]]
    precision = true / (false.astype(np.float64) + true + np.spacing(1))

    best = np.zeros(shape)
    np.maximum.at(best, (t, label, goal.bins[goal.starts[label] + true - 1]), precision)
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]

    known = np.flatnonzero(goal.objects)
    arrays.precision[:, :, known, a, m] = best[:, known].transpose(0, 2, 1)
    arrays.recall[:, known, a, m] = reached[:, known] / goal.objects[known]
    score = _scores(scores, line.rows, starts, line.rows[touched[place]], reached, goal)
    arrays.scores[:, :, known, a, m] = score[:, known].transpose(0, 2, 1)


def _spread(bits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[T, n] the lowest bits of each number, a row a threshold."""
    few = (bits & EVERY_THRESHOLD).astype(np.uint16)
    return (few >> np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None] & 1).astype(np.bool_)


def _bit(numbers: NDArray[np.int64], bit: int) -> NDArray[np.uint8]:
    """[n] not 0 where a bit is set; reads the one byte that holds it, as this runs over all detections."""
    octets = numbers.astype("<i8", copy=False).view(np.uint8)
    mine: NDArray[np.uint8] = octets[bit // 8 :: 8] & np.uint8(1 << bit % 8)
    return mine


def _since_start(
    total: NDArray[np.int32], t: NDArray[np.int64], place: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.int32]:
    """[N] a running total at some places, less what it was before the class began."""
    since: NDArray[np.int32] = total[t, place] - np.where(start > 0, total[t, start - 1], 0)
    return since


def _scores(
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    line_starts: NDArray[np.int64],
    right: NDArray[np.int64],
    reached: NDArray[np.int64],
    goal: _Goal,
) -> NDArray[np.float64]:
    """[T, C, R] the score of the detection that reaches a recall; recall 0 is reached by the first of all."""
    starts = (np.cumsum(reached) - reached.ravel()).reshape(reached.shape)
    is_reached = goal.needed <= reached[:, :, None]
    which = np.where(is_reached, starts[:, :, None] + goal.needed - 1, 0)
    at_recall = scores[right][which] if len(right) else np.zeros(which.shape)
    result = np.where(is_reached, at_recall, 0.0)
    some = np.flatnonzero(np.diff(line_starts))
    result[:, some, 0] = scores[rows[line_starts[some]]]
    return result
