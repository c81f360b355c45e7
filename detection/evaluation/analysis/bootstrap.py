"""Bootstrap over images: confidence intervals of AP, for one experiment or for the difference of two.

Two experiments are compared on the same draws, so that images that are hard for both do not hide a difference: each
round draws as many images as the split has, with replacement, and the interval holds the middle 95 % of the rounds. The
interval of one experiment comes from random halves of the images, drawn without replacement, and is corrected for the
bias of AP on few images: `confidence.normal`, which of all methods of `benchmarks.intervals` contains the score on many
images most reliably. A score on half of the images varies as much as it is uncertain on all of them.

    sample = BootstrapSample.of(overlaps, match(overlaps), num_images=len(index))
    intervals(sample).stats["AP50"]           # Interval(value=0.57, low=0.54, high=0.60)
    paired(before, after).stats["AP50"]       # Difference(value=0.02, low=-0.01, high=0.04, better=0.93)

The interval covers the choice of test images only. Another training seed varies more: see `detection noise`.

Detections are matched once: an image's true and false positives do not depend on other images. An image of
weight 2 counts as two copies of it, and with all weights 1 the result is COCO's AP to 1e-15. (Equal scores within an
image: the copies of one detection stay adjacent.)

Letters: B rounds of a block, C classes, F detections that are false positives at every threshold, K all other
detections that count, N true positives of one threshold, P images, S rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.errors import DetectionError
from detection.evaluation.analysis import confidence
from detection.evaluation.analysis.confidence import CONFIDENCE_LEVEL
from detection.evaluation.protocol.accumulate import RECALLS
from detection.evaluation.protocol.coco_metrics import AT_50, AT_75
from detection.evaluation.protocol.matching import MAX_DETECTIONS, THRESHOLDS, Matches
from detection.evaluation.protocol.overlaps import Overlaps

DEFAULT_ROUNDS, DEFAULT_SEED = 1000, 0
ALL_THRESHOLDS = tuple(range(len(THRESHOLDS)))
BLOCK_SIZE = 1 << 21
"""Weights of detections, objects and classes processed at once; bounds the memory."""


class Interval(NamedTuple):
    """Score and its confidence interval; NaN without objects."""

    value: float
    """Score on the images as they are."""
    low: float
    high: float


class Difference(NamedTuple):
    """Score of the second experiment minus that of the first, and its confidence interval."""

    value: float
    """Difference on the images as they are."""
    low: float
    high: float
    better: float
    """Fraction of the rounds in which the second scores higher; a tie counts half."""


Statistic = TypeVar("Statistic", Interval, Difference)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapResult(Generic[Statistic]):
    """Scores with confidence intervals."""

    rounds: int
    images: int
    stats: dict[str, Statistic]
    """`AP`, `AP50` and `AP75` over all classes, as far as the sample has their thresholds. The mean of a
    round is over the classes that it drew objects of."""
    per_class: dict[str, list[Statistic]]
    """[C] values in label order, by the same names."""

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Content of `reports/evaluation/tables/intervals.json`.

        `rounds`, `images`, `level`; `stats`: `{value, low, high}` by score; `per_class`: the same by score
        and class. NaN without objects.
        """
        per_class = {
            name: {label: value._asdict() for label, value in zip(classes, values, strict=True)}
            for name, values in self.per_class.items()
        }
        return {
            "rounds": self.rounds,
            "images": self.images,
            "level": CONFIDENCE_LEVEL,
            "stats": {name: value._asdict() for name, value in self.stats.items()},
            "per_class": per_class,
        }


class _TruePositives(NamedTuple):
    """True positives of one IoU threshold, sorted by class, then by descending score."""

    positions: NDArray[np.int64]
    """[N] indices into the K detections."""
    starts: NDArray[np.int64]
    """[C + 1] first true positive of each class."""
    false_positive: NDArray[np.bool_]
    """[K] false positives at this threshold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BootstrapSample:
    """Matches of one experiment, reduced to what a bootstrap round reads."""

    num_images: int
    num_classes: int
    thresholds: tuple[int, ...]
    """Ascending indices into `THRESHOLDS`."""
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
        truth, predictions = overlaps.ground_truth, overlaps.predictions
        bits = sum(1 << t for t in thresholds)
        order = overlaps.by_score[overlaps.rank[overlaps.by_score] < MAX_DETECTIONS]
        true_positive = matches.true_positive[order] & bits
        order = order[_up_to_last(true_positive != 0, predictions.labels[order])]
        true_positive, false_positive = (matches.true_positive[order] & bits, matches.false_positive[order] & bits)
        always_false = false_positive == bits
        kept = ~always_false & (true_positive | false_positive != 0)
        labels, classes = predictions.labels[order], np.arange(overlaps.num_classes + 1)
        counted = ~truth.ignored
        return cls(
            num_images=num_images,
            num_classes=overlaps.num_classes,
            thresholds=tuple(thresholds),
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
                )
                for t in thresholds
            ),
        )


def draw(num_images: int, rounds: int = DEFAULT_ROUNDS, seed: int = DEFAULT_SEED) -> NDArray[np.uint16]:
    """[S, P] number of times that each round draws each image; a function of the arguments alone."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((rounds, num_images), dtype=np.uint16)
    for row in weights if num_images else ():
        row[:] = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
    return weights


def draw_halves(num_images: int, rounds: int = DEFAULT_ROUNDS, seed: int = DEFAULT_SEED) -> NDArray[np.uint16]:
    """[S, P] weight 1 for the random half of the images of each round; a function of the arguments alone."""
    ranks = np.random.default_rng(seed).random((rounds, num_images)).argsort(axis=1)
    return (ranks < num_images // 2).astype(np.uint16)


def intervals(
    sample: BootstrapSample, rounds: int = DEFAULT_ROUNDS, seed: int = DEFAULT_SEED
) -> BootstrapResult[Interval]:
    """Scores of one experiment with confidence intervals from halves of the images."""
    scores = _scores(sample, _with_original(draw_halves(sample.num_images, rounds, seed)))
    return _summarize(sample, rounds, scores, _interval)


def paired(
    first: BootstrapSample, second: BootstrapSample, rounds: int = DEFAULT_ROUNDS, seed: int = DEFAULT_SEED
) -> BootstrapResult[Difference]:
    """Score differences of two experiments on the same draws, with confidence intervals.

    Args:
        first: Experiment to compare with.
        second: Other experiment, with the same ground truth and thresholds.
        rounds: Number of draws.
        seed: Seed of the draws.

    Raises:
        DetectionError: The two were scored on different images, classes or objects.
    """
    if _ground_truth(first) != _ground_truth(second):
        raise DetectionError(
            "the two experiments were scored on different images, classes or objects, so a round cannot draw "
            "the same images for both; compare experiments on the same test split"
        )
    assert first.thresholds == second.thresholds
    weights = _with_original(draw(first.num_images, rounds, seed))
    before, after = _scores(first, weights), _scores(second, weights)
    return _summarize(first, rounds, {name: after[name] - before[name] for name in before}, _difference)


def mean_scores(sample: BootstrapSample, weights: NDArray[np.uint16]) -> dict[str, NDArray[np.float64]]:
    """[S] `AP`, `AP50` and `AP75` over the classes with objects in each round.

    Args:
        sample: The experiment.
        weights: [S, P] weight of each image.
    """
    return {name: values[:, 0] for name, values in _scores(sample, weights).items()}


def average_precision(sample: BootstrapSample, weights: NDArray[np.uint16]) -> NDArray[np.float64]:
    """COCO's AP of every round, threshold and class.

    Args:
        sample: The experiment.
        weights: [S, P] weight of each image.

    Returns:
        [S, thresholds of the sample, C]; NaN where a round drew no object of a class.
    """
    width = len(sample.images) + len(sample.always_false_images) + len(sample.object_images) + sample.num_classes
    step = max(1, BLOCK_SIZE // max(1, width))
    result = np.full((len(weights), len(sample.thresholds), sample.num_classes), np.nan)
    for low in range(0, len(weights), step):
        result[low : low + step] = _block_ap(sample, weights[low : low + step])
    return result


def _block_ap(sample: BootstrapSample, weights: NDArray[np.uint16]) -> NDArray[np.float64]:
    """[B, thresholds, C] AP of some rounds."""
    objects = _drawn_objects(sample, weights)
    false = _running_sum(weights[:, sample.always_false_images])
    before, before_class = false[:, sample.always_false_before], false[:, sample.always_false_starts]
    drawn = weights[:, sample.images]
    values = np.stack(
        [_ap_at_threshold(one, sample, drawn, before, before_class, objects) for one in sample.true_positives], axis=1
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
    """
    positions, starts = true_positives.positions, true_positives.starts
    average = np.zeros(objects.shape)
    if len(positions) == 0:
        return average
    labels = sample.labels[positions]
    true_sum = _running_sum(weights[:, positions])  # [B, N + 1]
    true = true_sum[:, 1:] - true_sum[:, starts[labels]]
    false_sum = _running_sum(weights * true_positives.false_positive)
    class_starts = np.searchsorted(sample.labels, np.arange(sample.num_classes))
    base = false_before_class + false_sum[:, class_starts]
    false = false_before[:, positions] + false_sum[:, positions] - base[:, labels]
    precision = true / (false.astype(np.float64) + true + np.spacing(1))

    reached = np.searchsorted(RECALLS, true / np.maximum(objects, 1)[:, labels], side="right")  # [B, N]
    reached[true == 0] = 0  # recall 0 is read at the first true positive
    some = np.flatnonzero(np.diff(starts))
    for low, high in zip(starts[some].tolist(), starts[some + 1].tolist(), strict=True):
        backwards = precision[:, low:high][:, ::-1]
        np.maximum.accumulate(backwards, axis=1, out=backwards)
    read = np.diff(reached, axis=1, prepend=0)
    read[:, starts[some]] = reached[:, starts[some]]  # each class counts from 0
    average[:, some] = np.add.reduceat(precision * read, starts[some], axis=1) / len(RECALLS)
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
    """Indices up to the last true positive of each class: COCO reads no precision behind it."""
    positions = np.flatnonzero(true_positive)
    last = np.full(labels.max(initial=-1) + 1, -1)
    last[labels[positions]] = positions  # ascending: the last assignment stays
    return np.flatnonzero(np.arange(len(labels)) <= last[labels])


def _with_original(draws: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """[1 + S, P] weight 1 for every image, then the draws."""
    return np.concatenate([np.ones_like(draws[:1], shape=(1, draws.shape[1])), draws])


def _scores(sample: BootstrapSample, weights: NDArray[np.uint16]) -> dict[str, NDArray[np.float64]]:
    """[1 + S, 1 + C] by score name: mean over the classes, then each class."""
    values = average_precision(sample, weights)
    per_class = {"AP": values.mean(axis=1)} if sample.thresholds == ALL_THRESHOLDS else {}
    for name, threshold in (("AP50", AT_50), ("AP75", AT_75)):
        if threshold in sample.thresholds:
            per_class[name] = values[:, sample.thresholds.index(threshold)]
    return {name: np.column_stack([_class_mean(column), column]) for name, column in per_class.items()}


def _class_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S] means over the classes that have objects; NaN without any."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    result: NDArray[np.float64] = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return result


def _summarize(
    sample: BootstrapSample,
    rounds: int,
    scores: dict[str, NDArray[np.float64]],
    statistic: Callable[[NDArray[np.float64]], Statistic],
) -> BootstrapResult[Statistic]:
    columns = {name: [statistic(column) for column in values.T] for name, values in scores.items()}
    return BootstrapResult(
        rounds=rounds,
        images=sample.num_images,
        stats={name: values[0] for name, values in columns.items()},
        per_class={name: values[1:] for name, values in columns.items()},
    )


def _interval(column: NDArray[np.float64]) -> Interval:
    return Interval(float(column[0]), *confidence.interval("normal", float(column[0]), column[1:]))


def _difference(column: NDArray[np.float64]) -> Difference:
    known = column[1:][~np.isnan(column[1:])]
    if not len(known):
        return Difference(float(column[0]), np.nan, np.nan, np.nan)
    better = float(np.mean((np.sign(known) + 1) / 2))
    return Difference(float(column[0]), *confidence.percentile(float(column[0]), known), better)


def _ground_truth(sample: BootstrapSample) -> tuple[int, int, bytes]:
    """Number of images and classes, and the multiset of objects, to compare two samples."""
    cells = np.sort(sample.object_images * sample.num_classes + sample.object_labels)
    return sample.num_images, sample.num_classes, cells.tobytes()
