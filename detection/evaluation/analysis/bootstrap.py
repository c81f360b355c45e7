"""How far a score could be chance: a bootstrap over pictures, for one experiment or for a pair.

A round draws as many pictures as there are, with replacement, and scores what was drawn; the middle 95 % of
the rounds' scores are the interval (Efron 1979; percentiles). Two experiments are compared round by round on
the same draw, so that pictures which are hard for both do not hide a difference.

    sample = Sample.of(overlaps, match(overlaps), pictures=len(index))
    intervals(sample).stats["AP50"]           # Interval(value=0.57, low=0.54, high=0.60)
    paired(before, after).stats["AP50"]       # Difference(value=0.02, low=-0.01, high=0.04, better=0.93)

What varies here is which pictures were tested. Another seed of the training varies more: `detection noise`.

Letters: C classes, P pictures, S rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.errors import DetectionError
from detection.evaluation.analysis.bootstrap_ap import EVERY, BootstrapSample, average_precision
from detection.evaluation.analysis.tables import jsonable
from detection.evaluation.protocol.coco_metrics import AT_50, AT_75

ROUNDS, LEVEL, SEED = 1000, 0.95, 0


class Interval(NamedTuple):
    """A score, and where `LEVEL` of the rounds lie; NaN where there is nothing to find."""

    value: float
    """On the pictures as they are."""
    low: float
    high: float


class Difference(NamedTuple):
    """How much higher the second experiment scores than the first."""

    value: float
    """On the pictures as they are."""
    low: float
    high: float
    better: float
    """Share of the rounds in which the second scores higher; a round of equal scores counts half."""


Kind = TypeVar("Kind", Interval, Difference)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapResult(Generic[Kind]):
    """Scores and how far they could be chance."""

    rounds: int
    pictures: int
    stats: dict[str, Kind]
    """Of all classes: `AP`, `AP50`, `AP75`, as far as the sample has their thresholds. A round's mean is over
    the classes that it drew objects of."""
    per_class: dict[str, list[Kind]]
    """The same names, each with C entries in label order."""

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """As `reports/evaluation/intervals.json` has it.

        `rounds`, `pictures`, `level`; `stats`: by score `{value, low, high}`; `per_class`: by score and class
        the same; null where there is nothing to find.
        """
        per_class = {
            name: {label: one._asdict() for label, one in zip(classes, values, strict=True)}
            for name, values in self.per_class.items()
        }
        stats = {name: one._asdict() for name, one in self.stats.items()}
        written: dict[str, Any] = jsonable(
            {
                "rounds": self.rounds,
                "pictures": self.pictures,
                "level": LEVEL,
                "stats": stats,
                "per_class": per_class,
            }
        )
        return written


def draw(pictures: int, rounds: int = ROUNDS, seed: int = SEED) -> NDArray[np.uint16]:
    """[S, P] how often each round draws each picture; the same for the same three numbers."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((rounds, pictures), dtype=np.uint16)
    for row in weights if pictures else ():
        row[:] = np.bincount(rng.integers(0, pictures, pictures), minlength=pictures)
    return weights


def intervals(sample: BootstrapSample, rounds: int = ROUNDS, seed: int = SEED) -> BootstrapResult[Interval]:
    """Scores of one experiment and their intervals."""
    scores = _scores(sample, _with_itself(sample.pictures, rounds, seed))
    return _spread(sample, rounds, scores, _interval)


def paired(
    first: BootstrapSample, second: BootstrapSample, rounds: int = ROUNDS, seed: int = SEED
) -> BootstrapResult[Difference]:
    """What the second experiment scores more than the first.

    Args:
        first: Of the experiment to compare with.
        second: Of the other; of the same ground truth and thresholds.
        rounds: How often to draw.
        seed: Of the draws.

    Raises:
        DetectionError: The two were scored on different pictures, classes or objects.
    """
    if _truth(first) != _truth(second):
        raise DetectionError(
            "the two experiments were scored on different pictures, classes or objects, so a round cannot "
            "draw the same pictures for both; compare experiments on the same test split"
        )
    assert first.thresholds == second.thresholds
    weights = _with_itself(first.pictures, rounds, seed)
    before, after = _scores(first, weights), _scores(second, weights)
    return _spread(first, rounds, {name: after[name] - before[name] for name in before}, _difference)


def _with_itself(pictures: int, rounds: int, seed: int) -> NDArray[np.uint16]:
    """[1 + S, P] the pictures as they are, then the rounds."""
    return np.concatenate([np.ones((1, pictures), dtype=np.uint16), draw(pictures, rounds, seed)])


def _scores(sample: BootstrapSample, weights: NDArray[np.uint16]) -> dict[str, NDArray[np.float64]]:
    """By name, [1 + S, 1 + C]: the mean of the classes, then each."""
    values = average_precision(sample, weights)
    at = {name: sample.thresholds.index(t) for name, t in _NAMES.items() if t in sample.thresholds}
    per_class = {"AP": values.mean(axis=1)} if sample.thresholds == EVERY else {}
    per_class |= {name: values[:, place] for name, place in at.items()}
    return {name: np.column_stack([_mean(one), one]) for name, one in per_class.items()}


_NAMES = {"AP50": AT_50, "AP75": AT_75}


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S] means over the classes of which there are objects; NaN without any."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
    result: NDArray[np.float64] = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return result


def _spread(
    sample: BootstrapSample,
    rounds: int,
    scores: dict[str, NDArray[np.float64]],
    of: Callable[[NDArray[np.float64]], Kind],
) -> BootstrapResult[Kind]:
    columns = {name: [of(column) for column in values.T] for name, values in scores.items()}
    return BootstrapResult(
        rounds=rounds,
        pictures=sample.pictures,
        stats={name: one[0] for name, one in columns.items()},
        per_class={name: one[1:] for name, one in columns.items()},
    )


def _interval(column: NDArray[np.float64]) -> Interval:
    known = column[1:][~np.isnan(column[1:])]
    edges = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    low, high = np.quantile(known, edges).tolist() if len(known) else (np.nan, np.nan)
    return Interval(float(column[0]), low, high)


def _difference(column: NDArray[np.float64]) -> Difference:
    known = column[1:][~np.isnan(column[1:])]
    better = float(np.mean((np.sign(known) + 1) / 2)) if len(known) else np.nan
    return Difference(*_interval(column), better)


def _truth(sample: BootstrapSample) -> tuple[int, int, bytes]:
    cells = np.sort(sample.object_images * sample.classes + sample.object_labels)
    return sample.pictures, sample.classes, cells.tobytes()
