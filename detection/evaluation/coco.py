"""COCO's twelve numbers, by pycocotools itself.

pycocotools gets its structures in memory, from the packed arrays, and nothing on stdout. Letters: C classes.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.evaluation.results import Results

if TYPE_CHECKING:
    from pycocotools.coco import COCO

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
RECALLS = np.linspace(0.0, 1.0, 101)
"""[101] recalls at which COCO reads precision."""
ALL_AREAS, AT_50, AT_75 = 0, 0, 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CocoScore:
    """What COCO's protocol says about a set of detections; NaN where there is nothing to find."""

    stats: dict[str, float]
    """The twelve numbers, by the names in `STATS`."""
    precision: NDArray[np.float64]
    """[10, 101, C] precision at IoU 0.5:0.05:0.95 and `RECALLS`, objects of every size, 100 detections."""

    @property
    def per_class(self) -> dict[str, NDArray[np.float64]]:
        """`AP`, `AP50`, `AP75`: each [C]."""
        return {
            "AP": self.precision.mean(axis=(0, 1)),
            "AP50": self.precision[AT_50].mean(axis=0),
            "AP75": self.precision[AT_75].mean(axis=0),
        }


def score(index: Index, results: Results, classes: Sequence[str]) -> CocoScore:
    """Score detections by COCO's protocol.

    Difficult objects are treated as crowds: not counted, and a detection on one is neither right nor wrong.

    Args:
        index: The ground truth.
        results: Detections on its pictures.
        classes: Names; their number is what matters.

    Returns:
        The twelve numbers and the precision array.
    """
    from pycocotools.cocoeval import COCOeval

    if len(index) == 0:
        empty = np.full((10, len(RECALLS), len(classes)), np.nan)
        return CocoScore(stats=dict.fromkeys(STATS, float("nan")), precision=empty)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(_ground_truth(index, classes), _detections(index, results, classes), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    values = [float(value) if value > -1 else float("nan") for value in evaluator.stats]
    precision = evaluator.eval["precision"][:, :, :, ALL_AREAS, -1]
    return CocoScore(
        stats=dict(zip(STATS, values, strict=True)),
        precision=np.where(precision > -1, precision, np.nan),
    )


def _ground_truth(index: Index, classes: Sequence[str]) -> "COCO":
    images = np.repeat(index.image_ids(), np.diff(index.offsets)).tolist()
    ignored = (index.difficult | index.crowd).astype(int).tolist()
    columns = zip(
        images, index.labels.tolist(), _xywh(index.boxes), index.areas.tolist(), ignored, strict=True
    )
    annotations = [
        {
            "id": number,  # from 1: pycocotools reads a match with 0 as no match
            "image_id": image,
            "category_id": label + 1,
            "bbox": box,
            "area": area,
            "iscrowd": ignore,
            "ignore": ignore,
        }
        for number, (image, label, box, area, ignore) in enumerate(columns, start=1)
    ]
    return _coco(index, classes, annotations)


def _detections(index: Index, results: Results, classes: Sequence[str]) -> "COCO":
    annotations = results.to_coco(index)
    for number, row in enumerate(annotations, start=1):
        row |= {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    return _coco(index, classes, annotations)


def _coco(index: Index, classes: Sequence[str], annotations: list[dict[str, Any]]) -> "COCO":
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in index.image_ids().tolist()],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    rows: list[list[float]] = wide.tolist()
    return rows
