"""COCO results files: lists of boxes or masks with scores."""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.sources import coco
from detection.errors import DataError
from detection.evaluation.deviations import Deviations


class Result(msgspec.Struct, gc=False):
    """Entry of a COCO results file."""

    image_id: coco.Reference
    category_id: coco.Reference
    bbox: coco.Box
    score: float


class Mask(msgspec.Struct):
    """Run-length encoding of a mask."""

    size: tuple[int, int]
    counts: str | list[int]


class MaskResult(msgspec.Struct):
    """Entry of a COCO results file of a segmentation."""

    image_id: coco.Reference
    category_id: coco.Reference
    segmentation: Mask
    score: float


class ResultsFile(msgspec.Struct):
    """Results written as an instances file."""

    annotations: list[Result]


def read(path: Path, deviations: Deviations) -> tuple[list[Result], NDArray[np.float64] | None]:
    """Results of a file, and the areas of their masks if it has masks instead of boxes.

    Raises:
        DataError: The file is missing, or not a COCO results file; names the entry.
    """
    content_type = "a list of COCO results"
    content = coco.read_bytes(path, content_type)
    try:
        return msgspec.json.decode(content, type=list[Result]), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        results = msgspec.json.decode(content, type=ResultsFile).annotations
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        deviations.add(path, len(results), "results in an object with `annotations` instead of a list")
        return results, None
    try:
        masks = msgspec.json.decode(content, type=list[MaskResult])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return coco.decode(path, content, content_type, list[Result]), None  # raises the error of the format
    deviations.add(path, len(masks), "masks without boxes, scored by the boxes that enclose them")
    return _boxes_of_masks(path, masks)


def _boxes_of_masks(path: Path, results: list[MaskResult]) -> tuple[list[Result], NDArray[np.float64]]:
    from pycocotools import mask

    try:
        encoded = [
            {"size": list(one.size), "counts": one.counts.encode()}
            if isinstance(one.counts, str)
            else mask.frPyObjects({"size": list(one.size), "counts": one.counts}, *one.size)
            for one in (result.segmentation for result in results)
        ]
        boxes, areas = mask.toBbox(encoded).reshape(-1, 4), mask.area(encoded)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a segmentation is not a run-length encoding: {error}; fix the file") from None
    pairs = zip(results, boxes.tolist(), strict=True)
    rows = [Result(one.image_id, one.category_id, tuple(box), one.score) for one, box in pairs]
    return rows, np.asarray(areas, dtype=np.float64)
