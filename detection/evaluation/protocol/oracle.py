"""pycocotools as the oracle of the tests and of `verify`.

It reads its structures from memory and prints nothing. It is imported late because it is slow and large.
"""

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detection.errors import VerificationError
from detection.evaluation.protocol.accumulate import RECALLS, Arrays
from detection.evaluation.protocol.coco_metrics import CocoScore, stat_names
from detection.evaluation.protocol.matching import COCO_LIMITS, NUM_AREA_RANGES, THRESHOLDS, CocoLimits
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval


DETECTIONS_OF_AP = 100
"""Detections per image of pycocotools' `AP`, which ignores `maxDets`; the other metrics use the largest limit."""


def score(
    ground_truth: GroundTruth, predictions: Predictions, num_classes: int, limits: CocoLimits = COCO_LIMITS
) -> CocoScore:
    """The twelve metrics and their arrays, computed by pycocotools."""
    from pycocotools.cocoeval import COCOeval

    images = np.union1d(ground_truth.images, predictions.images)
    if len(images) == 0:
        return CocoScore.of(_empty_arrays(num_classes))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(
            _coco(images, num_classes, _annotations(ground_truth)),
            _coco(images, num_classes, _annotations(predictions)),
            "bbox",
        )
        _run(evaluator, limits)
    values = (float(value) if value > -1 else float("nan") for value in evaluator.stats)
    arrays = Arrays(*(evaluator.eval[name] for name in Arrays._fields))
    return CocoScore(stats=dict(zip(stat_names(limits), values, strict=True)), arrays=arrays)


def _run(evaluator: "COCOeval", limits: CocoLimits) -> None:
    evaluator.params.maxDets = [*limits.detections]
    evaluator.params.areaRng = limits.area_ranges.tolist()
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()


def verify(overlaps: Overlaps, ours: CocoScore, limits: CocoLimits = COCO_LIMITS) -> None:
    """Score again with pycocotools and compare every number.

    Args:
        overlaps: Ground truth and detections.
        ours: Scores to compare.
        limits: Limits of these scores.

    Raises:
        VerificationError: A number differs, even in the last bit.
    """
    # In input order, so that the sorting of `Overlaps` is verified too.
    ground_truth = overlaps.ground_truth.take(np.argsort(overlaps.object_order))
    predictions = overlaps.predictions.take(np.argsort(overlaps.detection_order))
    theirs = score(ground_truth, predictions, overlaps.num_classes, limits)
    for name in compared_names(limits):
        value, expected = ours.stats[name], theirs.stats[name]
        if value != expected and not (np.isnan(value) and np.isnan(expected)):
            raise VerificationError(f"{name} is {value!r}, but pycocotools computes {expected!r}; please report it")
    for name in Arrays._fields:
        values, wanted = getattr(ours.arrays, name), getattr(theirs.arrays, name)
        if not np.array_equal(values, wanted):
            at = tuple(np.argwhere(values != wanted)[0].tolist())
            raise VerificationError(
                f"{name} at {at} is {values[at]}, but pycocotools computes {wanted[at]}; please report it"
            )


def score_files(ground_truth: Path, detections: Path, limits: CocoLimits = COCO_LIMITS) -> dict[str, float]:
    """The twelve metrics that pycocotools computes from the files as they are.

    Raises:
        VerificationError: pycocotools cannot read a file.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            truth = COCO(str(ground_truth))
            evaluator = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
        except (AssertionError, KeyError, IndexError, TypeError, ValueError) as error:
            raise VerificationError(f"pycocotools cannot read {ground_truth} and {detections}: {error!r}") from None
        _run(evaluator, limits)
    values = (float(value) if value > -1 else float("nan") for value in evaluator.stats)
    return dict(zip(stat_names(limits), values, strict=True))


def compared_names(limits: CocoLimits) -> tuple[str, ...]:
    """Metrics that pycocotools computes with the same limits."""
    names = stat_names(limits)
    return names if limits.most_detections == DETECTIONS_OF_AP else names[1:]


def _empty_arrays(num_classes: int) -> Arrays:
    """`COCOeval.eval` of a split without images, which pycocotools itself cannot score."""
    counts = (num_classes, NUM_AREA_RANGES, len(COCO_LIMITS.detections))
    precision = np.full((len(THRESHOLDS), len(RECALLS), *counts), -1.0)
    return Arrays(precision, np.full((len(THRESHOLDS), *counts), -1.0), precision.copy())


def _annotations(side: GroundTruth | Predictions) -> list[dict[str, Any]]:
    """COCO annotations; ids start at 1, as pycocotools reads a match with id 0 as no match."""
    columns = {"image_id": side.images, "category_id": side.labels, "bbox": side.boxes}
    if isinstance(side, GroundTruth):
        columns |= {"area": side.areas, "iscrowd": side.ignored.astype(np.int64)}
    else:
        crowd = np.zeros(len(side.scores), dtype=np.int64)
        columns |= {"area": side.areas, "iscrowd": crowd, "score": side.scores}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"id": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows, start=1)]


def _coco(images: NDArray[np.int64], num_classes: int, annotations: list[dict[str, Any]]) -> "COCO":
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images.tolist()],
        "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
