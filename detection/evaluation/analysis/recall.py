"""Recall over what objects are like, and how well the boxes of found ones fit.

Both at IoU 0.5, read off COCO's matching. Letters: D detections, T objects, N pictures, P pairs.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.analysis.error_types import FOREGROUND_IOU, MatchResult
from detection.evaluation.protocol.ordering import ranges
from detection.evaluation.protocol.overlaps import Overlaps, Predictions, pairwise_iou

if TYPE_CHECKING:
    import pandas as pd

BINS = {
    "size": (0.0, 16, 32, 64, 96, 128, 256, 512, np.inf),
    "aspect ratio": (0.0, 1 / 4, 1 / 2, 2 / 3, 3 / 2, 2, 4, np.inf),
    "crowding": (0.0, 1e-9, 0.1, 0.3, 0.5, np.inf),
    "truncation": (0.0, 1, 2, np.inf),
}
"""Lower edges, and where the last bin ends. Size: square root of the area in pixels. Aspect ratio: width to
height. Crowding: greatest IoU with another object of the picture, of whatever class. Truncation: how many of
the picture's sides the box touches to a pixel."""
AT_SIDE = 1.0
"""Pixels from a picture's side that still touch it."""


def recall_by_attribute(
    overlaps: Overlaps, result: MatchResult, score: float, sizes: NDArray[np.number] | None
) -> "pd.DataFrame":
    """Recall of objects that need to be found, by what they are like.

    Args:
        overlaps: The sparse pass.
        result: COCO's matching at IoU 0.5.
        score: The threshold that `recall_kept` is about.
        sizes: [N, 2] height and width of the pictures; None: truncation is left out.

    Returns:
        Columns `over` (a key of `BINS`), `low`, `high` (empty: no end), `objects`, `found` (by a detection of
        any score), `kept` (by one above the threshold), `recall`, `recall_kept`. Bins without objects are
        left out.
    """
    import pandas as pd

    kept = np.zeros(len(result.counted), dtype=np.bool_)
    kept[result.object[result.true_positive & (overlaps.predictions.scores >= score)]] = True
    rows = np.flatnonzero(result.counted)
    parts = []
    for over, values in _values(overlaps, sizes).items():
        edges = np.array(BINS[over])
        place = np.searchsorted(edges, values[rows], side="right") - 1
        objects, found, of_kept = (
            np.bincount(place, weights, len(edges) - 1).astype(np.int64)
            for weights in (None, result.detected[rows], kept[rows])
        )
        some = np.flatnonzero(objects)
        columns = {
            "attribute": over,
            "low": edges[some],
            "high": np.where(np.isinf(edges[some + 1]), np.nan, edges[some + 1]),
            "objects": objects[some],
            "detected": found[some],
            "detected_above_threshold": of_kept[some],
            "recall": found[some] / objects[some],
            "recall_above_threshold": of_kept[some] / objects[some],
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _values(overlaps: Overlaps, sizes: NDArray[np.number] | None) -> dict[str, NDArray[np.float64]]:
    """[T] by the names of `BINS`."""
    truth = overlaps.ground_truth
    x, y, width, height = truth.boxes.T
    values = {
        "size": np.sqrt(truth.areas),
        "aspect ratio": width / np.maximum(height, 1e-9),
        "crowding": _crowding(overlaps),
    }
    if sizes is not None:
        picture = sizes[truth.images]
        touched = [
            x <= AT_SIDE,
            y <= AT_SIDE,
            x + width >= picture[:, 1] - AT_SIDE,
            y + height >= picture[:, 0] - AT_SIDE,
        ]
        values["truncation"] = np.sum(touched, axis=0).astype(np.float64)
    return values


def _crowding(overlaps: Overlaps) -> NDArray[np.float64]:
    """[T] each object's greatest IoU with another one of its picture."""
    truth = overlaps.ground_truth
    mine = Predictions(
        images=truth.images, labels=truth.labels, boxes=truth.boxes, scores=np.zeros(len(truth.labels))
    )
    start = np.searchsorted(truth.images, truth.images, side="left")
    end = np.searchsorted(truth.images, truth.images, side="right")
    greatest = np.zeros(len(truth.labels))
    for left, right in ranges(start, end - start):
        other = left != right
        one, _, iou = pairwise_iou(mine, truth, left[other], right[other])
        np.maximum.at(greatest, one, iou)
    return greatest


OFFSETS = {
    "x": "centre to the right, in widths of the object",
    "y": "centre further down, in heights",
    "width": "too wide, in widths",
    "height": "too high, in heights",
}
"""What is measured of a right detection against its object, besides the IoU."""


def localization(overlaps: Overlaps, result: MatchResult, score: float) -> "pd.DataFrame":
    """How the boxes of right detections above a threshold lie on their objects.

    Returns:
        A histogram a measure, `IoU` and the keys of `OFFSETS`: columns `measure`, `low`, `high`,
        `detections`; and in every row the measure's `mean`, `q10`, `median` and `q90` over the same
        detections (NaN without any). Offsets beyond half of the object count in the outermost bins.
    """
    import pandas as pd

    rows = np.flatnonzero(result.true_positive & (overlaps.predictions.scores >= score))
    things = result.object[rows]
    _, _, iou = pairwise_iou(overlaps.predictions, overlaps.ground_truth, rows, things)
    found, truth = overlaps.predictions.boxes[rows], overlaps.ground_truth.boxes[things]
    shift = (found[:, :2] + found[:, 2:] / 2 - truth[:, :2] - truth[:, 2:] / 2) / truth[:, 2:]
    growth = found[:, 2:] / truth[:, 2:] - 1
    measures = {"IoU": iou}
    measures |= dict(zip(OFFSETS, (*shift.T, *growth.T), strict=True))
    parts = []
    for name, values in measures.items():
        edges = np.linspace(FOREGROUND_IOU, 1, 21) if name == "IoU" else np.linspace(-0.5, 0.5, 41)
        quantiles = np.quantile(values, (0.1, 0.5, 0.9)) if len(values) else np.full(3, np.nan)
        columns = {
            "measure": name,
            "low": edges[:-1].round(4),
            "high": edges[1:].round(4),
            "detections": np.histogram(values.clip(edges[0], edges[-1]), edges)[0],
            "mean": values.mean() if len(values) else np.nan,
            **dict(zip(("q10", "median", "q90"), quantiles.tolist(), strict=True)),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
