"""COCO's twelve metrics and their arrays, bit-equal to pycocotools.

Letters: C classes, T = 10 IoU thresholds, R = 101 recalls, A = 4 area ranges, M = 3 limits on detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.evaluation.protocol.accumulate import RECALLS, Arrays, accumulate
from detection.evaluation.protocol.matching import COCO_LIMITS, THRESHOLDS, CocoLimits, Matches, match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections

__all__ = ["AT_50", "AT_75", "RECALLS", "STATS", "THRESHOLDS", "CocoScore", "score", "score_matches", "stat_names"]


def stat_names(limits: CocoLimits) -> tuple[str, ...]:
    """Names of `COCOeval.stats`, in its order."""
    recall = (f"AR{limit}" for limit in limits.detections)
    return "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", *recall, "AR_small", "AR_medium", "AR_large"


STATS = stat_names(COCO_LIMITS)
ALL_AREAS, SMALL, MEDIUM, LARGE = range(4)
AT_50, AT_75 = 0, 5
"""Indices of IoU 0.5 and 0.75 in `THRESHOLDS`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CocoScore:
    """COCO's metrics of a set of detections; NaN without objects."""

    stats: dict[str, float]
    """The twelve metrics, by `stat_names`."""
    arrays: Arrays
    """Arrays of `COCOeval.eval`; -1 without objects."""

    @classmethod
    def of(cls, arrays: Arrays, limits: CocoLimits = COCO_LIMITS) -> "CocoScore":
        """Summarize arrays of pycocotools or of `accumulate`."""
        return cls(stats=dict(zip(stat_names(limits), _summarize(arrays), strict=True)), arrays=arrays)

    @property
    def precision(self) -> NDArray[np.float64]:
        """[T, R, C] precision at IoU 0.5:0.05:0.95 and `RECALLS`, all sizes, most detections."""
        return _nan(self.arrays.precision[:, :, :, ALL_AREAS, -1])

    @property
    def recall(self) -> NDArray[np.float64]:
        """[T, C] greatest recall, all sizes, most detections."""
        return _nan(self.arrays.recall[:, :, ALL_AREAS, -1])

    @property
    def scores(self) -> NDArray[np.float64]:
        """[T, R, C] score at which each recall is reached, 0 if it is not; as `precision`."""
        return _nan(self.arrays.scores[:, :, :, ALL_AREAS, -1])

    @property
    def per_class(self) -> dict[str, NDArray[np.float64]]:
        """[C] `AP`, `AP50` and `AP75` of each class."""
        curves = np.ascontiguousarray(self.precision.transpose(2, 0, 1))  # [C, T, R], the order of pycocotools' sums
        return {
            "AP": curves.reshape(len(curves), -1).mean(axis=1),
            "AP50": curves[:, AT_50].mean(axis=1),
            "AP75": curves[:, AT_75].mean(axis=1),
        }


def score(index: Index, detections: SplitDetections, classes: Sequence[str]) -> CocoScore:
    """Score detections by COCO's protocol.

    Difficult objects are treated as crowds: they do not count, and a detection on one is neither a true nor a
    false positive.

    Args:
        index: Ground truth.
        detections: Detections on its images.
        classes: Names, in label order.
    """
    overlaps = Overlaps.of_index(index, detections, len(classes))
    return score_matches(overlaps, match(overlaps))


def score_matches(overlaps: Overlaps, matches: Matches, *, for_stats: bool = False) -> CocoScore:
    """Score matched detections.

    Args:
        overlaps: Objects, detections and their pairs.
        matches: Matching of the detections.
        for_stats: Leave out the arrays that neither the twelve metrics nor `precision` and `per_class` read.
    """
    return CocoScore.of(accumulate(overlaps, matches, for_stats=for_stats), matches.limits)


def _summarize(arrays: Arrays) -> list[float]:
    """`COCOeval.summarize`, with its order of summands, which decides the last bit."""
    return [
        *(_mean(arrays.precision[part, :, :, ALL_AREAS, -1]) for part in (slice(None), AT_50, AT_75)),
        *(_mean(arrays.precision[:, :, :, area, -1]) for area in (SMALL, MEDIUM, LARGE)),
        *(_mean(arrays.recall[:, :, ALL_AREAS, limit]) for limit in range(3)),
        *(_mean(arrays.recall[:, :, area, -1]) for area in (SMALL, MEDIUM, LARGE)),
    ]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else float("nan")


def _nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > -1, values, np.nan)
