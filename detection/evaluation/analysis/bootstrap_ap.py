"""COCO's average precision of a split in which every picture counts a given number of times.

Nothing is matched again: a picture's detections are right or wrong whatever other pictures are there. With
all weights one the result is COCO's AP; a picture of weight two counts as two pictures would. (Of equal
scores on one picture, those of one detection come together then, as if its copies had been read one after
the other.)

Letters: B rounds of one block, C classes, K detections that are not wrong at every threshold, N those that
are right at one, P pictures, R = 101 recalls, S rounds, W detections that are wrong at every threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol.accumulate import RECALLS
from detection.evaluation.protocol.matching import MAX_DETECTIONS, THRESHOLDS, Matches
from detection.evaluation.protocol.overlaps import Overlaps

EVERY = tuple(range(len(THRESHOLDS)))
BLOCK = 1 << 21
"""Weights of detections looked at in one go: bounds the memory."""


class _Rights(NamedTuple):
    """The right detections of one threshold, class after class, the best score first."""

    places: NDArray[np.int64]
    """[N] where they stand among the K."""
    starts: NDArray[np.int64]
    """[C + 1] where each class begins."""
    wrong: NDArray[np.bool_]
    """[K] which of the K are wrong at this threshold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BootstrapSample:
    """One experiment's matches, reduced to what drawing pictures needs."""

    pictures: int
    classes: int
    thresholds: tuple[int, ...]
    """Places in `THRESHOLDS`, rising."""
    object_images: NDArray[np.int64]
    """Pictures of the objects that count."""
    object_labels: NDArray[np.int64]
    images: NDArray[np.int64]
    """[K] pictures."""
    labels: NDArray[np.int64]
    """[K] rising."""
    wrong_images: NDArray[np.int64]
    """[W] pictures."""
    before: NDArray[np.int64]
    """[K] how many of the W come before each."""
    before_class: NDArray[np.int64]
    """[C] how many of the W come before each class."""
    rights: tuple[_Rights, ...]
    """A threshold each."""

    @classmethod
    def of(
        cls, overlaps: Overlaps, matches: Matches, *, pictures: int, thresholds: Sequence[int] = EVERY
    ) -> "BootstrapSample":
        """Sort once what all rounds read.

        Args:
            overlaps: The sparse pass; its pictures are below `pictures`.
            matches: COCO's matching of it.
            pictures: How many there are, those without objects and detections too.
            thresholds: Places in `THRESHOLDS`, rising: `(AT_50,)` is a third of the work of all.
        """
        truth, found = overlaps.truth, overlaps.found
        chosen = sum(1 << t for t in thresholds)
        rows = overlaps.by_score[overlaps.rank[overlaps.by_score] < MAX_DETECTIONS]
        rows = rows[_up_to_last(matches.right[rows] & chosen != 0, found.labels[rows])]
        right, wrong = matches.right[rows] & chosen, matches.wrong[rows] & chosen
        always = wrong == chosen
        some = ~always & (right | wrong != 0)
        labels, classes = found.labels[rows], np.arange(overlaps.classes + 1)
        counted = ~truth.ignored
        return cls(
            pictures=pictures,
            classes=overlaps.classes,
            thresholds=tuple(thresholds),
            object_images=truth.images[counted],
            object_labels=truth.labels[counted],
            images=found.images[rows[some]],
            labels=labels[some],
            wrong_images=found.images[rows[always]],
            before=np.cumsum(always)[some],
            before_class=np.searchsorted(labels[always], classes[:-1]),
            rights=tuple(
                _Rights(
                    places := np.flatnonzero(right[some] >> t & 1),
                    np.searchsorted(labels[some][places], classes),
                    wrong[some] >> t & 1 == 1,
                )
                for t in thresholds
            ),
        )


def _up_to_last(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows up to the last right one of their class: no precision behind it is read."""
    places = np.flatnonzero(right)
    last = np.full(labels.max(initial=-1) + 1, -1)
    last[labels[places]] = places  # rising: the last one stays
    return np.flatnonzero(np.arange(len(labels)) <= last[labels])


def average_precision(sample: BootstrapSample, weights: NDArray[np.uint16]) -> NDArray[np.float64]:
    """COCO's AP of every round, threshold and class.

    Args:
        sample: The experiment.
        weights: [S, P] how often each picture counts.

    Returns:
        [S, thresholds of the sample, C]; NaN where a round drew no object of a class.
    """
    step = max(1, BLOCK // max(1, len(sample.images) + len(sample.wrong_images)))
    result = np.full((len(weights), len(sample.thresholds), sample.classes), np.nan)
    for low in range(0, len(weights), step):
        result[low : low + step] = _block(sample, weights[low : low + step])
    return result


def _block(sample: BootstrapSample, weights: NDArray[np.uint16]) -> NDArray[np.float64]:
    """[B, thresholds, C]."""
    objects = _objects(sample, weights)
    needed = _needed(objects)
    wrong = _running(weights[:, sample.wrong_images])
    plain = wrong[:, sample.before]
    base = wrong[:, sample.before_class]
    mine = weights[:, sample.images]
    values = np.stack(
        [_at_threshold(one, sample, mine, plain, base, needed) for one in sample.rights], axis=1
    )
    values[np.broadcast_to((objects == 0)[:, None], values.shape)] = np.nan
    return values


def _at_threshold(
    rights: _Rights,
    sample: BootstrapSample,
    weights: NDArray[np.uint16],
    plain: NDArray[np.int64],
    base: NDArray[np.int64],
    needed: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[B, C] AP at one threshold.

    Args:
        rights: Of that threshold.
        sample: The experiment.
        weights: [B, K].
        plain: [B, K] weight of those wrong everywhere, up to each.
        base: [B, C] the same, up to each class.
        needed: [B, C, R] weight of right detections that reaches a recall.
    """
    if len(rights.places) == 0:
        return np.zeros(needed.shape[:2])
    labels = sample.labels[rights.places]
    right = _running(weights[:, rights.places])  # [B, N + 1]
    true = right[:, 1:] - right[:, rights.starts[labels]]
    wrong = _running(weights * rights.wrong)
    class_starts = np.searchsorted(sample.labels, np.arange(sample.classes))
    base = base + wrong[:, class_starts]
    false = plain[:, rights.places] + wrong[:, rights.places] - base[:, labels]
    precision = true / (false.astype(np.float64) + true + np.spacing(1))
    for low, high in zip(rights.starts[:-1].tolist(), rights.starts[1:].tolist(), strict=True):
        backwards = precision[:, low:high][:, ::-1]
        np.maximum.accumulate(backwards, axis=1, out=backwards)

    before = right[:, rights.starts]  # [B, C + 1]
    is_reached = needed <= np.diff(before)[:, :, None]
    rounds = np.arange(len(right))[:, None] * (right.max() + 1)  # makes one rising row of all rounds
    wanted = needed + (before[:, :-1] + rounds)[:, :, None]
    place = np.searchsorted((right[:, 1:] + rounds).ravel(), wanted.ravel()).reshape(wanted.shape)
    read = precision.ravel()[np.minimum(place, precision.size - 1)]
    average: NDArray[np.float64] = np.where(is_reached, read, 0.0).mean(axis=2)
    return average


def _objects(sample: BootstrapSample, weights: NDArray[np.uint16]) -> NDArray[np.int64]:
    """[B, C] objects that were drawn."""
    cell = np.arange(len(weights))[:, None] * sample.classes + sample.object_labels
    drawn = np.bincount(cell.ravel(), weights[:, sample.object_images].ravel(), len(weights) * sample.classes)
    return drawn.astype(np.int64).reshape(len(weights), sample.classes)


def _needed(objects: NDArray[np.int64]) -> NDArray[np.int64]:
    """[B, C, R] the fewest right detections, one at least, whose share of the objects reaches each recall."""
    some = np.maximum(objects, 1)[:, :, None]
    guess = np.ceil(RECALLS * some)  # one too many where the product was rounded up
    guess -= (guess - 1) / some >= RECALLS
    guess += guess / some < RECALLS
    return np.maximum(guess, 1).astype(np.int64)


def _running(weights: NDArray[np.uint16]) -> NDArray[np.int64]:
    """[B, n + 1] sums of the first 0, 1, … n."""
    total = np.zeros((len(weights), weights.shape[1] + 1), dtype=np.int64)
    np.cumsum(weights, axis=1, out=total[:, 1:])
    return total
