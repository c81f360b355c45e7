"""From matches to COCO's arrays of precision, recall and score.

pycocotools walks along all detections of a class, 120 times (thresholds x areas x caps). Precision, made
monotone from the right, can only change where a detection is right, so it is computed there alone: a
hundredth of the places, the same arithmetic, the same bits.

Letters: D detections, C classes, N right detections of one area range and cap, T = 10 IoU thresholds,
R = 101 recalls, A = 4 ranges of area, M = 3 caps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.matching import AREAS, THRESHOLDS, Matches, in_areas
from detection.evaluation.overlaps import Overlaps

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


class _Line(NamedTuple):
    """The detections under one cap, class after class, the best score first."""

    rows: NDArray[np.int64]
    """[D] in `Overlaps.found`."""
    starts: NDArray[np.int64]
    """[C + 1] where each class begins."""
    right: NDArray[np.int64]
    """[D] bits of the runs in which each is right."""
    wrong: NDArray[np.int64]
    """[D] likewise."""
    touched: NDArray[np.int64]
    """Places of the detections that are matched in some run; the others are the same in all."""
    touched_starts: NDArray[np.int64]
    """[C + 1] where each class begins among those."""


def accumulate(overlaps: Overlaps, matches: Matches) -> Arrays:
    """Precision over recall of every class, as `COCOeval.accumulate` has it."""
    shape = (len(THRESHOLDS), len(RECALLS), overlaps.classes, len(AREAS), len(CAPS))
    arrays = Arrays(np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0), np.full(shape, -1.0))
    truth, found = overlaps.truth, overlaps.found
    counted = np.where(truth.ignored, 0, in_areas(truth.areas))
    order = np.lexsort((-found.scores, found.labels))  # stable: by picture, then by rank, among equals
    goals = []
    for a in range(len(AREAS)):
        here = (counted >> (len(THRESHOLDS) * a)) & 1 == 1
        goals.append(_Goal.of(np.bincount(truth.labels[here], minlength=overlaps.classes)))
    for m, cap in enumerate(CAPS):
        line = _line(overlaps, matches, order[overlaps.rank[order] < cap])
        for a in range(len(AREAS)):
            _fill(arrays, a, m, overlaps, line, goals[a])
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


def _line(overlaps: Overlaps, matches: Matches, rows: NDArray[np.int64]) -> _Line:
    labels = overlaps.found.labels[rows]
    touched = np.flatnonzero(matches.matched[rows])
    classes = np.arange(overlaps.classes + 1)
    return _Line(
        rows,
        np.searchsorted(labels, classes),
        matches.right[rows],
        matches.wrong[rows],
        touched,
        np.searchsorted(labels[touched], classes),
    )


def _fill(arrays: Arrays, a: int, m: int, overlaps: Overlaps, line: _Line, goal: _Goal) -> None:
    """Write one range of area and one cap into the arrays."""
    runs = (len(THRESHOLDS) * a + np.arange(len(THRESHOLDS)))[:, None]
    rows = line.rows[line.touched]
    right = ((line.right[line.touched] >> runs) & 1).astype(np.bool_)  # [T, touched]
    wrong = ((line.wrong[line.touched] >> runs) & 1).astype(np.bool_)
    t, place = np.nonzero(right)  # [N], class after class for each threshold
    label = overlaps.found.labels[rows[place]]

    true = _since_start(np.cumsum(right, axis=1), t, place, line.touched_starts[label])
    false = _since_start(np.cumsum(wrong, axis=1), t, place, line.touched_starts[label])
    plain = (line.wrong >> runs[0]) & 1
    plain[line.touched] = 0
    before = np.concatenate([[0], np.cumsum(plain)])
    false += before[line.touched[place]] - before[line.starts[label]]
    precision = true / (false.astype(np.float64) + true + np.spacing(1))

    classes, shape = len(goal.objects), (len(THRESHOLDS), len(goal.objects), len(RECALLS))
    best = np.zeros(shape)
    np.maximum.at(best, (t, label, goal.bins[goal.starts[label] + true - 1]), precision)
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]

    reached = np.bincount(t * classes + label, minlength=shape[0] * classes).reshape(shape[:2])
    known = np.flatnonzero(goal.objects)
    arrays.precision[:, :, known, a, m] = best[:, known].transpose(0, 2, 1)
    arrays.recall[:, known, a, m] = reached[:, known] / goal.objects[known]
    score = _scores(overlaps.found.scores, line, rows[place], reached, goal)
    arrays.scores[:, :, known, a, m] = score[:, known].transpose(0, 2, 1)


def _since_start(
    total: NDArray[np.int64], t: NDArray[np.int64], place: NDArray[np.int64], start: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[N] a running total at some places, less what it was before the class began."""
    earlier: NDArray[np.int64] = np.where(start > 0, total[t, start - 1], 0)
    return total[t, place] - earlier


def _scores(
    scores: NDArray[np.float64],
    line: _Line,
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
    some = np.flatnonzero(np.diff(line.starts))
    result[:, some, 0] = scores[line.rows[line.starts[some]]]
    return result
