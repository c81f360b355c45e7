"""Recall by size, aspect ratio, crowding and truncation of the objects, and accuracy of the boxes.

Both at IoU 0.5, from COCO's matching. Letters: D detections, T objects, N images.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detection.evaluation.analysis.error_types import FOREGROUND_IOU, MatchResult
from detection.evaluation.protocol.overlaps import Overlaps, Predictions, pairwise_iou, same_image_pairs

if TYPE_CHECKING:
    import pandas as pd

ATTRIBUTE_BINS = {
    "size": (0.0, 16, 32, 64, 96, 128, 256, 512, np.inf),
    "aspect ratio": (0.0, 1 / 4, 1 / 2, 2 / 3, 3 / 2, 2, 4, np.inf),
    "crowding": (0.0, 1e-9, 0.1, 0.3, 0.5, np.inf),
    "truncation": (0.0, 1, 2, np.inf),
}
"""Bin edges by attribute. Size: square root of the area in pixels. Aspect ratio: width / height. Crowding:
greatest IoU with another object of the image, of any class. Truncation: number of image borders that the box
touches."""
BORDER_TOLERANCE = 1.0
"""Distance in pixels from an image border at which a box still touches it."""
BOX_ERRORS = ("x", "y", "width", "height")
"""Errors of a true positive's box, in units of the object's box: center too far right, in widths; center too
low, in heights; too wide, relative to object width; too tall, relative to object height."""


def recall_by_attribute(
    overlaps: Overlaps, result: MatchResult, score: float, sizes: NDArray[np.number] | None
) -> "pd.DataFrame":
    """Recall of objects that count, by attribute.

    Args:
        overlaps: Ground truth and detections.
        result: COCO's matching at IoU 0.5.
        score: Threshold of the columns `*_above_threshold`.
        sizes: [N, 2] image heights and widths; None omits truncation.

    Returns:
        Columns `attribute` (a key of `ATTRIBUTE_BINS`), `low`, `high` (empty: no upper limit), `objects`,
        `detected` (with any score), `detected_above_threshold`, `recall`, `recall_above_threshold`. Bins
        without objects are left out.
    """
    import pandas as pd

    above = np.zeros(len(result.counted), dtype=np.bool_)
    above[result.object[result.true_positive & (overlaps.predictions.scores >= score)]] = True
    counted = np.flatnonzero(result.counted)
    tables = []
    for attribute, values in _attributes(overlaps, sizes).items():
        edges = np.array(ATTRIBUTE_BINS[attribute])
        bins = np.searchsorted(edges, values[counted], side="right") - 1
        objects, detected, detected_above = (
            np.bincount(bins, weights, len(edges) - 1).astype(np.int64)
            for weights in (None, result.detected[counted], above[counted])
        )
        some = np.flatnonzero(objects)
        columns = {
            "attribute": attribute,
            "low": edges[some],
            "high": np.where(np.isinf(edges[some + 1]), np.nan, edges[some + 1]),
            "objects": objects[some],
            "detected": detected[some],
            "detected_above_threshold": detected_above[some],
            "recall": detected[some] / objects[some],
            "recall_above_threshold": detected_above[some] / objects[some],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _attributes(overlaps: Overlaps, sizes: NDArray[np.number] | None) -> dict[str, NDArray[np.float64]]:
    """[T] values by the names of `ATTRIBUTE_BINS`."""
    truth = overlaps.ground_truth
    x, y, width, height = truth.boxes.T
    values = {
        "size": np.sqrt(truth.areas),
        "aspect ratio": width / np.maximum(height, 1e-9),
        "crowding": _crowding(overlaps),
    }
    if sizes is not None:
        image_height, image_width = sizes[truth.images].T
        touched = [
            x <= BORDER_TOLERANCE,
            y <= BORDER_TOLERANCE,
            x + width >= image_width - BORDER_TOLERANCE,
            y + height >= image_height - BORDER_TOLERANCE,
        ]
        values["truncation"] = np.sum(touched, axis=0).astype(np.float64)
    return values


def _crowding(overlaps: Overlaps) -> NDArray[np.float64]:
    """[T] greatest IoU of each object with another object of its image."""
    truth = overlaps.ground_truth
    scores = np.zeros(len(truth.labels))
    as_predictions = Predictions(images=truth.images, labels=truth.labels, boxes=truth.boxes, scores=scores)
    greatest = np.zeros(len(truth.labels))
    for first, second in same_image_pairs(truth.images, truth.images):
        other = first != second
        objects, _, iou = pairwise_iou(as_predictions, truth, first[other], second[other])
        np.maximum.at(greatest, objects, iou)
    return greatest


def localization(overlaps: Overlaps, result: MatchResult, score: float) -> "pd.DataFrame":
    """Accuracy of the boxes of true positives above a score threshold.

    Returns:
        One histogram per measure, `IoU` and `BOX_ERRORS`: columns `measure`, `low`, `high`, `detections`; and
        in every row the `mean`, `q10`, `median` and `q90` of the measure over the same detections (NaN
        without any). Errors above half of the object's size are counted in the outermost bins.
    """
    import pandas as pd

    kept = np.flatnonzero(result.true_positive & (overlaps.predictions.scores >= score))
    objects = result.object[kept]
    _, _, iou = pairwise_iou(overlaps.predictions, overlaps.ground_truth, kept, objects)
    predicted, actual = overlaps.predictions.boxes[kept], overlaps.ground_truth.boxes[objects]
    centers = predicted[:, :2] + predicted[:, 2:] / 2 - actual[:, :2] - actual[:, 2:] / 2
    shift, growth = centers / actual[:, 2:], predicted[:, 2:] / actual[:, 2:] - 1
    measures = {"IoU": iou, **dict(zip(BOX_ERRORS, (*shift.T, *growth.T), strict=True))}
    tables = []
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
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
