"""Confidence intervals of AP over the choice of test images, for one experiment or for the difference of two.

Two experiments are compared on the same draws, so that images that are hard for both do not hide a difference: each
round draws as many images as the split has, with replacement, and the interval holds the middle 95 % of the rounds. The
interval of one experiment stands around an estimate of AP without the bias of few images (`resampling.Curve`), which
may lie below the score, and takes its spread from random halves of the images, drawn without replacement: a score on
half of the images varies as much as it is uncertain on all of them. `benchmarks.intervals` measures how often it
contains the score on many images.

    sample = BootstrapSample.of(overlaps, match(overlaps), num_images=len(index))
    intervals(sample).stats["AP50"]           # Interval(value=0.57, low=0.54, high=0.60)
    paired(before, after).stats["AP50"]       # Difference(value=0.02, low=-0.01, high=0.04, better=0.93, …)

The interval covers the choice of test images only. Another training seed varies more: see `detection noise`.

Letters: C classes, P images, S rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.errors import DetectionError
from detection.evaluation.analysis import confidence
from detection.evaluation.analysis.confidence import CONFIDENCE_LEVEL
from detection.evaluation.analysis.resampling import (
    ALL_THRESHOLDS,
    COCO_CURVE,
    VOC_CURVES,
    BootstrapSample,
    Curve,
    average_precision,
)
from detection.evaluation.protocol.coco_metrics import AT_50, AT_75

DEFAULT_ROUNDS, DEFAULT_SEED = 1000, 0
UNBIASED = Curve(None, unbiased=True)


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
    p_value: float
    """Two-sided, by Student's t with one degree of freedom less than the images that hold the class."""


Statistic = TypeVar("Statistic", Interval, Difference)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapResult(Generic[Statistic]):
    """Scores with confidence intervals."""

    rounds: int
    images: int
    stats: dict[str, Statistic]
    """`AP`, `AP50` and `AP75` over all classes, as far as the sample has their thresholds, or VOC's scores. The mean of
    a round is over the classes that it drew objects of."""
    per_class: dict[str, list[Statistic]]
    """[C] values in label order, by the same names."""

    def with_scores_of(self, other: Self) -> Self:
        """Result with the scores of both; they have different names."""
        stats, per_class = self.stats | other.stats, self.per_class | other.per_class
        return replace(self, stats=stats, per_class=per_class)

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
    """COCO's scores of one experiment with confidence intervals."""
    weights = _with_original(draw_halves(sample.num_images, rounds, seed))
    unbiased = _scores(sample, weights, UNBIASED)
    columns = {
        name: _intervals(values[0], unbiased[name], sample) for name, values in _scores(sample, weights[:1]).items()
    }
    return _result(sample, rounds, columns)


def voc_intervals(
    sample: BootstrapSample, rounds: int = DEFAULT_ROUNDS, seed: int = DEFAULT_SEED
) -> BootstrapResult[Interval]:
    """VOC's scores of one experiment with confidence intervals; the sample is one of `BootstrapSample.of_voc`."""
    weights = _with_original(draw_halves(sample.num_images, rounds, seed))
    columns = {}
    for name, curve in VOC_CURVES.items():
        (value,) = average_precision(sample, weights[:1], curve)
        unbiased = average_precision(sample, weights, Curve(curve.recalls, unbiased=True))
        by_round = np.concatenate([_with_mean(values[:, 0]) for values in unbiased])
        columns[name] = _intervals(_with_mean(value[:, 0])[0], by_round, sample)
    return _result(sample, rounds, columns)


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
    images = [first.num_images, *first.images_per_class().tolist()]
    columns = {
        name: [_difference(column, count) for column, count in zip((after[name] - before[name]).T, images, strict=True)]
        for name in before
    }
    return _result(first, rounds, columns)


def mean_scores(
    sample: BootstrapSample, weights: NDArray[np.uint16], curve: Curve = COCO_CURVE
) -> dict[str, NDArray[np.float64]]:
    """[S] `AP`, `AP50` and `AP75` over the classes with objects in each round.

    Args:
        sample: The experiment.
        weights: [S, P] weight of each image.
        curve: Definition of AP.
    """
    return {name: values[:, 0] for name, values in _scores(sample, weights, curve).items()}


def _with_original(draws: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """[1 + S, P] weight 1 for every image, then the draws."""
    return np.concatenate([np.ones_like(draws[:1], shape=(1, draws.shape[1])), draws])


def _scores(
    sample: BootstrapSample, weights: NDArray[np.uint16], curve: Curve = COCO_CURVE
) -> dict[str, NDArray[np.float64]]:
    """[1 + S, 1 + C] by score name: mean over the classes, then each class."""
    blocks: dict[str, list[NDArray[np.float64]]] = {}
    for values in average_precision(sample, weights, curve):
        if sample.thresholds == ALL_THRESHOLDS:
            blocks.setdefault("AP", []).append(_with_mean(values.mean(axis=1)))
        for name, threshold in (("AP50", AT_50), ("AP75", AT_75)):
            if threshold in sample.thresholds:
                blocks.setdefault(name, []).append(_with_mean(values[:, sample.thresholds.index(threshold)]))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _with_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, 1 + C] mean over the classes that have objects, NaN without any; then each class."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    mean = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return np.column_stack([mean, values])


def _result(sample: BootstrapSample, rounds: int, columns: dict[str, list[Statistic]]) -> BootstrapResult[Statistic]:
    return BootstrapResult(
        rounds=rounds,
        images=sample.num_images,
        stats={name: values[0] for name, values in columns.items()},
        per_class={name: values[1:] for name, values in columns.items()},
    )


def _intervals(values: NDArray[np.float64], unbiased: NDArray[np.float64], sample: BootstrapSample) -> list[Interval]:
    """Intervals of the mean and of each class.

    Args:
        values: [1 + C] scores.
        unbiased: [1 + S, 1 + C] scores without bias: of all images, then of each half.
        sample: The experiment.
    """
    images = sample.images_per_class()
    counts = [int(images.sum()), *images.tolist()]
    freedom = [confidence.degrees_of_freedom(images), *(float(max(count - 1, 1)) for count in counts[1:])]
    columns = zip(values.tolist(), unbiased.T, freedom, counts, strict=True)
    return [Interval(value, *confidence.wilson(*column)) for value, *column in columns]


def _difference(column: NDArray[np.float64], images: int) -> Difference:
    value, known = float(column[0]), column[1:][~np.isnan(column[1:])]
    if not len(known):
        return Difference(value, np.nan, np.nan, np.nan, np.nan)
    better = float(np.mean((np.sign(known) + 1) / 2))
    p_value = confidence.two_sided_p(value, float(known.std()), images - 1)
    return Difference(value, *confidence.percentile(known), better, p_value)


def _ground_truth(sample: BootstrapSample) -> tuple[int, int, bytes]:
    """Number of images and classes, and the multiset of objects, to compare two samples."""
    cells = np.sort(sample.object_images * sample.num_classes + sample.object_labels)
    return sample.num_images, sample.num_classes, cells.tobytes()
