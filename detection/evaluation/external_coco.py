"""COCO's two files: the instances, and a list of results."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.errors import DataError
from detection.evaluation.external import (
    FARTHEST,
    ExternalData,
    drop_unknown,
    known_sizes,
    read_bytes,
    refuse,
    rows_of,
    too_far,
)
from detection.evaluation.protocol.overlaps import GroundTruth, Predictions

Read = TypeVar("Read")
Box = tuple[float, float, float, float]
Id = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]  # fits int64


class _Image(msgspec.Struct, gc=False):
    id: Id
    height: float | None = None
    width: float | None = None


class _Category(msgspec.Struct, gc=False):
    id: Id
    name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: Box
    area: float | None = None
    iscrowd: int | bool = 0


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Result(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    bbox: Box
    score: float


def read(ground_truth: Path, detections: Path, *, skip_unknown: bool = False) -> ExternalData:
    """Read both files.

    Pictures and classes are numbered in the order of their ids, as pycocotools sorts them. `ignore` is not
    looked at: pycocotools takes it from `iscrowd`.

    Args:
        ground_truth: An instances file; polygons and file names are not looked at.
        detections: A list of `{image_id, category_id, bbox, score}`, boxes as `x, y, width, height`.
        skip_unknown: Leave out detections of pictures and categories that the ground truth does not list.

    Raises:
        DataError: A file is missing, empty or broken, or one of its records cannot be right.
    """
    instances = _decode(ground_truth, "COCO instances", _Instances)
    pictures = _ids(ground_truth, "pictures", [image.id for image in instances.images])
    names = {category.id: category.name for category in instances.categories}
    categories = _ids(ground_truth, "categories", [category.id for category in instances.categories])
    truth = _truth(ground_truth, instances.annotations, pictures, categories)
    by_id = {image.id: (image.height, image.width) for image in instances.images}
    sizes = known_sizes([by_id[number] for number in pictures])
    del instances  # half of the memory, at COCO's size
    return ExternalData(
        truth=truth,
        found=_found(detections, pictures, categories, skip_unknown),
        classes=tuple(names[number] for number in categories),
        pictures=tuple(map(str, pictures)),
        sizes=sizes,
    )


def _truth(path: Path, rows: list[_Annotation], pictures: list[int], categories: list[int]) -> GroundTruth:
    images = rows_of([row.image_id for row in rows], pictures)
    labels = rows_of([row.category_id for row in rows], categories)
    boxes = np.array([row.bbox for row in rows], dtype=np.float64).reshape(-1, 4)
    at = f"{path}: $.annotations[%d]"
    refuse(images < 0, lambda i: f"{at % i} names picture {rows[i].image_id}, which is not listed")
    refuse(labels < 0, lambda i: f"{at % i} names category {rows[i].category_id}, which is not listed")
    refuse(_inverted(boxes), lambda i: f"{at % i} has a negative width or height: {rows[i].bbox}")
    refuse(too_far(boxes), lambda i: f"{at % i} is a box beyond {FARTHEST:.0e} pixels: {rows[i].bbox}")
    areas = [row.bbox[2] * row.bbox[3] if row.area is None else row.area for row in rows]
    return GroundTruth(
        images=images,
        labels=labels,
        boxes=boxes,
        areas=np.array(areas, dtype=np.float64),
        ignored=np.array([row.iscrowd != 0 for row in rows], dtype=np.bool_),
    )


def _found(path: Path, pictures: list[int], categories: list[int], skip_unknown: bool) -> Predictions:
    rows = _decode(path, "a list of COCO results", list[_Result])
    images = rows_of([row.image_id for row in rows], pictures)
    labels = rows_of([row.category_id for row in rows], categories)
    boxes = np.array([row.bbox for row in rows], dtype=np.float64).reshape(-1, 4)
    at = f"{path}: $[%d]"
    refuse(
        _inverted(boxes),
        lambda i: f"{at % i} has a negative width or height: {rows[i].bbox}; boxes are x, y, width, height",
    )
    refuse(too_far(boxes), lambda i: f"{at % i} is a box beyond {FARTHEST:.0e} pixels: {rows[i].bbox}")

    def unknown(row: int) -> str:
        if images[row] < 0:
            return f"{at % row} names picture {rows[row].image_id}, which the ground truth does not list"
        return f"{at % row} names category {rows[row].category_id}, which the ground truth does not list"

    kept = drop_unknown((images < 0) | (labels < 0), skip_unknown, path, unknown)
    scores = np.array([row.score for row in rows], dtype=np.float64)
    return Predictions(images=images, labels=labels, boxes=boxes, scores=scores).take(np.flatnonzero(kept))


def _inverted(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    inverted: NDArray[np.bool_] = (boxes[:, 2] < 0) | (boxes[:, 3] < 0)
    return inverted


def _ids(path: Path, what: str, numbers: list[int]) -> list[int]:
    """Sorted, after a look that there are some and no two are equal."""
    if not numbers:
        raise DataError(f"{path}: it lists no {what}; name the instances file of the split")
    if len(set(numbers)) < len(numbers):
        raise DataError(f"{path}: two of its {what} have the same id; give each its own")
    return sorted(numbers)


def _decode(path: Path, what: str, kind: type[Read]) -> Read:
    content = read_bytes(path, what)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not {what}: {_where(content, error)}; mend the file") from None


def _where(content: bytes, error: Exception) -> str:
    """What is wrong and where; Python's own JSON reader lets NaN pass and counts lines."""
    try:
        rows = json.loads(content)
    except ValueError as other:
        return str(other)
    except RecursionError:
        return "it is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return str(error)
    found = _not_finite(rows, "$")
    return f"{found} is not a finite number" if found else str(error)


def _not_finite(value: Any, path: str) -> str | None:
    if isinstance(value, float):
        return None if np.isfinite(value) else path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    steps = ((f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]", one) for key, one in items)
    return next((found for step, one in steps if (found := _not_finite(one, step))), None)
