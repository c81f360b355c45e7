"""COCO's twelve numbers, and the arrays behind them: bit for bit those of pycocotools.

Letters: C classes, T = 10 IoU thresholds, R = 101 recalls, A = 4 ranges of area, M = 3 caps on detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.evaluation.protocol.accumulate import RECALLS, Arrays, accumulate
from detection.evaluation.protocol.matching import THRESHOLDS, Matches, match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections

__all__ = ["AT_50", "AT_75", "RECALLS", "STATS", "THRESHOLDS", "CocoScore", "score", "score_matches"]

STATS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""COCOeval's order."""
ALL_AREAS, AT_50, AT_75 = 0, 0, 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CocoScore:
    """What COCO's protocol says about a set of detections; NaN where there is nothing to find."""

    stats: dict[str, float]
    """The twelve numbers, by the names in `STATS`."""
    arrays: Arrays
    """All of `COCOeval.eval`, where -1 says that there is nothing to find."""

    @classmethod
    def of(cls, arrays: Arrays) -> "CocoScore":
        """Summarise pycocotools' arrays, or ours."""
        return cls(stats=_summarize(arrays), arrays=arrays)

    @property
    def precision(self) -> NDArray[np.float64]:
        """[T, R, C] precision at IoU 0.5:0.05:0.95 and `RECALLS`, objects of every size, 100 detections."""
        return _nan(self.arrays.precision[:, :, :, ALL_AREAS, -1])

    @property
    def recall(self) -> NDArray[np.float64]:
        """[T, C] greatest recall, objects of every size, 100 detections."""
        return _nan(self.arrays.recall[:, :, ALL_AREAS, -1])

    @property
    def scores(self) -> NDArray[np.float64]:
        """[T, R, C] score at which each recall is reached, 0 where it is not; as `precision`."""
        return _nan(self.arrays.scores[:, :, :, ALL_AREAS, -1])

    @property
    def per_class(self) -> dict[str, NDArray[np.float64]]:
        """`AP`, `AP50`, `AP75`: each [C]."""
        curves = np.ascontiguousarray(self.precision.transpose(2, 0, 1))  # [C, T, R], summed in that order
        return {
            "AP": curves.reshape(len(curves), -1).mean(axis=1),
            "AP50": curves[:, AT_50].mean(axis=1),
            "AP75": curves[:, AT_75].mean(axis=1),
        }


def score(index: Index, results: SplitDetections, classes: Sequence[str]) -> CocoScore:
    """Score detections by COCO's protocol.

    Difficult objects are treated as crowds: not counted, and a detection on one is neither right nor wrong.

    Args:
        index: The ground truth.
        results: Detections on its pictures.
        classes: Names; their number is what matters.

    Returns:
        The twelve numbers and the arrays.
    """
    overlaps = Overlaps.of_index(index, results, len(classes))
    return score_matches(overlaps, match(overlaps))


def score_matches(overlaps: Overlaps, matches: Matches) -> CocoScore:
    """Score what was matched already."""
    return CocoScore.of(accumulate(overlaps, matches))


def _summarize(arrays: Arrays) -> dict[str, float]:
    """`COCOeval.summarize`; means are taken in its order of summands, which decides the last bit."""
    every, small, medium, large = range(4)
    rows = [
        *(_mean(arrays.precision[part, :, :, every, -1]) for part in (slice(None), AT_50, AT_75)),
        *(_mean(arrays.precision[:, :, :, area, -1]) for area in (small, medium, large)),
        *(_mean(arrays.recall[:, :, every, cap]) for cap in range(3)),
        *(_mean(arrays.recall[:, :, area, -1]) for area in (small, medium, large)),
    ]
    return dict(zip(STATS, rows, strict=True))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else float("nan")


def _nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > -1, values, np.nan)
