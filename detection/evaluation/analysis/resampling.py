"""Average precision on resampled images, without matching again.

Detections are matched once: an image's true and false positives do not depend on other images. An image of
weight 2 counts as two copies of it, and with all weights 1 the result is COCO's or VOC's AP to 1e-15. (Equal scores
within an image: the copies of one detection stay adjacent.)

`Curve.unbiased` estimates AP without the bias of few images. Precision at a true positive is counted on the
detections with a higher score, without itself (Haldane 1945: the unbiased estimate of a proportion that is sampled
until a success), and is not made monotone. Without a higher score in its class, the precision of all classes at that
score takes its place. At 50 images of VOC2007 test the bias of AP is 0.01 instead of 0.06.

Letters: B rounds of a block, C classes, F detections that are false positives at every threshold, K all other
detections that count, N true positives of one threshold, P images, S rounds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.protocol import voc_metrics
from detection.evaluation.protocol.accumulate import RECALLS
from detection.evaluation.protocol.matching import THRESHOLDS, Matches
from detection.evaluation.protocol.overlaps import Overlaps

ALL_THRESHOLDS = tuple(range(len(THRESHOLDS)))
BLOCK_SIZE = 1 << 21
"""Weights of detections, objects and classes processed at once; bounds the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Definition of AP from precision and recall."""

    recalls: NDArray[np.float64] | None
    """Recalls at which precision is read; None: area under the curve."""
    unbiased: bool = False
    """Precision of the other detections, not monotone, instead of that with the true positive, made monotone."""


COCO_CURVE = Curve(RECALLS)
VOC_CURVES = {"voc_ap50_11pt": Curve(voc_metrics.RECALLS), "voc_ap50_area": Curve(None)}


class _TruePositives(NamedTuple):
    """True positives of one IoU threshold, sorted by class, then by descending score."""

    positions: NDArray[np.int64]
    """[N] indices into the K detections."""
    starts: NDArray[np.int64]
    """[C + 1] first true positive of each class."""
    false_positive: NDArray[np.bool_]
    """[K] false positives at this threshold."""
    pooled_precision: NDArray[np.float64]
    """[N] precision of all classes at a higher score."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BootstrapSample:
    """Matches of one experiment, reduced to what a bootstrap round reads."""

    num_images: int
    num_classes: int
    thresholds: tuple[int, ...]
    """Ascending indices into `THRESHOLDS`; one of a sample by VOC's rules."""
    object_images: NDArray[np.int64]
    """Image of each object that counts."""
    object_labels: NDArray[np.int64]
    """Class of each object that counts."""
    images: NDArray[np.int64]
    """[K] image of each detection."""
    labels: NDArray[np.int64]
    """[K] class of each detection, ascending."""
    always_false_images: NDArray[np.int64]
    """[F] image of each false positive of all thresholds."""
    always_false_before: NDArray[np.int64]
    """[K] number of the F before each detection."""
    always_false_starts: NDArray[np.int64]
    """[C] number of the F before each class."""
    true_positives: tuple[_TruePositives, ...]
    """True positives per threshold."""

    @classmethod
    def of(
        cls, overlaps: Overlaps, matches: Matches, *, num_images: int, thresholds: Sequence[int] = ALL_THRESHOLDS
    ) -> "BootstrapSample":
        """Sort detections once for all rounds.

        Args:
            overlaps: Ground truth and detections; image numbers are below `num_images`.
            matches: COCO's matching of `overlaps`.
            num_images: Number of images, including those without objects and detections.
            thresholds: Ascending indices into `THRESHOLDS`. `(AT_50,)` takes a third of the time of all.
        """
        bits = sum(1 << t for t in thresholds)
        order = overlaps.by_score[overlaps.rank[overlaps.by_score] < matches.limits.most_detections]
        flags = matches.true_positive[order] & bits, matches.false_positive[order] & bits
        return cls._of_flags(overlaps, order, *flags, num_images, tuple(thresholds))

    @classmethod
    def of_voc(cls, overlaps: Overlaps, matches: voc_metrics.VocMatches, *, num_images: int) -> "BootstrapSample":
        """Sort detections that are matched by VOC's rules; the one threshold is that of the matches."""
        flags = matches.true_positive.astype(np.int64), matches.false_positive.astype(np.int64)
        return cls._of_flags(overlaps, matches.order, *flags, num_images, (0,))

    @classmethod
    def _of_flags(
        cls,
        overlaps: Overlaps,
        order: NDArray[np.int64],
        true_positive: NDArray[np.int64],
        false_positive: NDArray[np.int64],
        num_images: int,
        thresholds: tuple[int, ...],
    ) -> "BootstrapSample":
        """Reduce detections that are sorted by class and descending score; bit t of the flags is threshold t."""
        truth, predictions = overlaps.ground_truth, overlaps.predictions
        scores, bits = predictions.scores[order], sum(1 << t for t in thresholds)
        pooled = _PooledPrecision.of(scores, true_positive, false_positive)
        needed = _up_to_last(true_positive != 0, predictions.labels[order])
        order, scores = order[needed], scores[needed]
        true_positive, false_positive = true_positive[needed], false_positive[needed]
        always_false = false_positive == bits
        kept = ~always_false & (true_positive | false_positive != 0)
        labels, classes = predictions.labels[order], np.arange(overlaps.num_classes + 1)
        counted = ~truth.ignored
        return cls(
            num_images=num_images,
            num_classes=overlaps.num_classes,
            thresholds=thresholds,
            object_images=truth.images[counted],
            object_labels=truth.labels[counted],
            images=predictions.images[order[kept]],
            labels=labels[kept],
            always_false_images=predictions.images[order[always_false]],
            always_false_before=np.cumsum(always_false)[kept],
            always_false_starts=np.searchsorted(labels[always_false], classes[:-1]),
            true_positives=tuple(
                _TruePositives(
                    positions := np.flatnonzero(true_positive[kept] >> t & 1),
                    np.searchsorted(labels[kept][positions], classes),
                    false_positive[kept] >> t & 1 == 1,
                    pooled.above(scores[kept][positions], t),
                )
                for t in thresholds
            ),
        )

    def images_per_class(self) -> NDArray[np.int64]:
        """[C] number of images with objects of each class."""
        cells = np.unique(self.object_images * self.num_classes + self.object_labels)
        return np.bincount(cells % max(self.num_classes, 1), minlength=self.num_classes)


class _PooledPrecision(NamedTuple):
    """Flags of the detections of all classes by descending score."""

    scores: NDArray[np.float64]
    true_positive: NDArray[np.int64]
    false_positive: NDArray[np.int64]

    @classmethod
    def of(
        cls, scores: NDArray[np.float64], true_positive: NDArray[np.int64], false_positive: NDArray[np.int64]
    ) -> "_PooledPrecision":
        by_score = np.argsort(-scores, kind="stable")
        return cls(scores[by_score], true_positive[by_score], false_positive[by_score])

    def above(self, scores: NDArray[np.float64], threshold: int) -> NDArray[np.float64]:
        """Precision at or above each score of a true positive, without that one; 1 without any other."""
        at = np.searchsorted(-self.scores, -scores, side="right") - 1
        true = np.cumsum(self.true_positive >> threshold & 1)[at] - 1
        total = true + np.cumsum(self.false_positive >> threshold & 1)[at]
        return np.where(total > 0, true / np.maximum(total, 1), 1.0)


def average_precision(
    sample: BootstrapSample, weights: NDArray[np.uint16], curve: Curve = COCO_CURVE
) -> Iterator[NDArray[np.float64]]:
    """AP of every round, threshold and class, some rounds at a time.

    Args:
        sample: The experiment.
        weights: [S, P] weight of each image.
        curve: Definition of AP.

    Yields:
        [B, thresholds of the sample, C]; NaN where a round drew no object of a class.
    """
    width = len(sample.images) + len(sample.always_false_images) + len(sample.object_images)
    width += len(sample.thresholds) * sample.num_classes
    step = max(1, BLOCK_SIZE // max(1, width))
    for low in range(0, len(weights), step):
        yield _block_ap(sample, weights[low : low + step], curve)


def _block_ap(sample: BootstrapSample, weights: NDArray[np.uint16], curve: Curve) -> NDArray[np.float64]:
    """[B, thresholds, C] AP of some rounds."""
    objects = _drawn_objects(sample, weights)
    false = _running_sum(weights[:, sample.always_false_images])
    before, before_class = false[:, sample.always_false_before], false[:, sample.always_false_starts]
    drawn = weights[:, sample.images]
    values = np.stack(
        [_ap_at_threshold(one, sample, drawn, before, before_class, objects, curve) for one in sample.true_positives],
        axis=1,
    )
    values[np.broadcast_to((objects == 0)[:, None], values.shape)] = np.nan
    return values


def _ap_at_threshold(
    true_positives: _TruePositives,
    sample: BootstrapSample,
    weights: NDArray[np.uint16],
    false_before: NDArray[np.int64],
    false_before_class: NDArray[np.int64],
    objects: NDArray[np.int64],
    curve: Curve,
) -> NDArray[np.float64]:
    """[B, C] AP at one threshold.

    A true positive counts as often as recalls are first reached by it, so that the work does not grow with the
    number of classes.

    Args:
        true_positives: True positives of the threshold.
        sample: The experiment.
        weights: [B, K] weight of each detection.
        false_before: [B, K] weight of the false positives of all thresholds up to each detection.
        false_before_class: [B, C] the same up to each class.
        objects: [B, C] weight of the objects.
        curve: Definition of AP.
    """
    positions, starts = true_positives.positions, true_positives.starts
    average = np.zeros(objects.shape)
    if len(positions) == 0:
        return average
    labels = sample.labels[positions]
    drawn = weights[:, positions]
    true_sum = _running_sum(drawn)  # [B, N + 1]
    true = true_sum[:, 1:] - true_sum[:, starts[labels]]
    false_sum = _running_sum(weights * true_positives.false_positive)
    class_starts = np.searchsorted(sample.labels, np.arange(sample.num_classes))
    base = false_before_class + false_sum[:, class_starts]
    false = false_before[:, positions] + false_sum[:, positions] - base[:, labels]
    some = np.flatnonzero(np.diff(starts))
    if curve.unbiased:
        others = true - drawn
        precision = others / np.maximum(others + false, 1)
        np.copyto(precision, true_positives.pooled_precision, where=others + false == 0)
    else:
        precision = true / (false.astype(np.float64) + true + np.spacing(1))
        for low, high in zip(starts[some].tolist(), starts[some + 1].tolist(), strict=True):
            backwards = precision[:, low:high][:, ::-1]
            np.maximum.accumulate(backwards, axis=1, out=backwards)
    if curve.recalls is None:
        read = drawn / np.maximum(objects, 1)[:, labels]
    else:
        reached = np.searchsorted(curve.recalls, true / np.maximum(objects, 1)[:, labels], side="right")  # [B, N]
        reached[true == 0] = 0  # recall 0 is read at the first true positive
        times = np.diff(reached, axis=1, prepend=0)
        times[:, starts[some]] = reached[:, starts[some]]  # each class counts from 0
        read = times / len(curve.recalls)
    average[:, some] = np.add.reduceat(precision * read, starts[some], axis=1)
    return average


def _drawn_objects(sample: BootstrapSample, weights: NDArray[np.uint16]) -> NDArray[np.int64]:
    """[B, C] number of objects drawn."""
    cell = np.arange(len(weights))[:, None] * sample.num_classes + sample.object_labels
    shape = (len(weights), sample.num_classes)
    drawn = np.bincount(cell.ravel(), weights[:, sample.object_images].ravel(), shape[0] * shape[1])
    return drawn.astype(np.int64).reshape(shape)


def _running_sum(weights: NDArray[np.uint16]) -> NDArray[np.int64]:
    """[B, n + 1] sums of the first 0, 1, … n columns."""
    total = np.zeros((len(weights), weights.shape[1] + 1), dtype=np.int64)
    np.cumsum(weights, axis=1, out=total[:, 1:])
    return total


def _up_to_last(true_positive: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices up to the last true positive of each class: no precision behind it is read."""
    positions = np.flatnonzero(true_positive)
    last = np.full(labels.max(initial=-1) + 1, -1)
    last[labels[positions]] = positions  # ascending: the last assignment stays
    return np.flatnonzero(np.arange(len(labels)) <= last[labels])
