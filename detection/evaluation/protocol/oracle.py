"""pycocotools beside our own evaluator: the oracle of the tests and of `verify`.

It gets its structures in memory, from the arrays, and prints nothing. Imported late: it is slow and large.
"""

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from detection.errors import VerificationError
from detection.evaluation.protocol.accumulate import Arrays
from detection.evaluation.protocol.coco_metrics import STATS, CocoScore
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions

if TYPE_CHECKING:
    from pycocotools.coco import COCO


def score(truth: GroundTruth, found: Predictions, classes: int) -> CocoScore:
    """The twelve numbers and the arrays by pycocotools itself."""
    from pycocotools.cocoeval import COCOeval

    images = np.union1d(truth.images, found.images)
    if len(images) == 0:
        return CocoScore.of(_nothing(classes))
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(
            _coco(images, classes, _objects(truth)), _coco(images, classes, _boxes(found)), "bbox"
        )
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    values = (float(value) if value > -1 else float("nan") for value in evaluator.stats)
    arrays = Arrays(*(evaluator.eval[name] for name in ("precision", "recall", "scores")))
    return CocoScore(stats=dict(zip(STATS, values, strict=True)), arrays=arrays)


def verify(overlaps: Overlaps, ours: CocoScore) -> None:
    """Score once more by pycocotools and compare every number.

    Raises:
        VerificationError: A number differs, be it in the last bit.
    """
    truth = overlaps.ground_truth.take(
        np.argsort(overlaps.object_order)
    )  # as it was given: our sorting is judged too
    theirs = score(
        truth, overlaps.predictions.take(np.argsort(overlaps.detection_order)), overlaps.num_classes
    )
    for name in STATS:
        mine, other = ours.stats[name], theirs.stats[name]
        if mine != other and not (np.isnan(mine) and np.isnan(other)):
            raise VerificationError(f"{name} is {mine!r} and pycocotools says {other!r}; please report it")
    for name in Arrays._fields:
        mine, other = getattr(ours.arrays, name), getattr(theirs.arrays, name)
        if not np.array_equal(mine, other):
            where = tuple(np.argwhere(mine != other)[0].tolist())
            raise VerificationError(
                f"{name} at {where} is {mine[where]} and pycocotools says {other[where]}; please report it"
            )


def _nothing(classes: int) -> Arrays:
    return Arrays(
        np.full((10, 101, classes, 4, 3), -1.0),
        np.full((10, classes, 4, 3), -1.0),
        np.full((10, 101, classes, 4, 3), -1.0),
    )


def _objects(truth: GroundTruth) -> list[dict[str, Any]]:
    crowd = truth.ignored.astype(int).tolist()
    columns = zip(
        truth.images.tolist(),
        truth.labels.tolist(),
        truth.boxes.tolist(),
        truth.areas.tolist(),
        crowd,
        strict=True,
    )
    return [
        {
            "id": number,  # from 1: pycocotools reads a match with 0 as no match
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": ignored,
        }
        for number, (image, label, box, area, ignored) in enumerate(columns, start=1)
    ]


def _boxes(found: Predictions) -> list[dict[str, Any]]:
    columns = zip(
        found.images.tolist(), found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
    )
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for number, (image, label, box, score) in enumerate(columns, start=1)
    ]


def _coco(images: np.ndarray[Any, Any], classes: int, annotations: list[dict[str, Any]]) -> "COCO":
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images.tolist()],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
