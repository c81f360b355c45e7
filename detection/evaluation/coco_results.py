"""COCO results files: lists of boxes or masks with scores."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.sources import coco
from detection.errors import DataError
from detection.evaluation.deviations import Deviations

CHUNK_SIZE = 1 << 17
"""Bytes decoded at once."""
ENTRY_END = re.compile(rb"\}\s*,")


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Columns of a COCO results file, one row per entry."""

    image_id: NDArray[Any]
    """[D], int64, or float64 if the file has floats."""
    category_id: NDArray[Any]
    """[D], likewise."""
    bbox: NDArray[np.float64]
    """[D, 4] `x, y, width, height`."""
    score: NDArray[np.float64]
    """[D]."""
    mask_areas: NDArray[np.float64] | None = None
    """[D] areas of the masks if the file has masks instead of boxes."""

    @classmethod
    def of(cls, results: Sequence[Result]) -> Self:
        """Columns of decoded entries."""
        count = len(results)
        sides = chain.from_iterable([result.bbox for result in results])
        return cls(
            image_id=np.array([result.image_id for result in results]),
            category_id=np.array([result.category_id for result in results]),
            bbox=np.fromiter(sides, np.float64, 4 * count).reshape(-1, 4),
            score=np.fromiter([result.score for result in results], np.float64, count),
        )

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate parts without masks."""
        names = ("image_id", "category_id", "bbox", "score")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def read(path: Path, deviations: Deviations) -> Columns:
    """Columns of a results file.

    Raises:
        DataError: The file is missing, or not a COCO results file; names the entry.
    """
    content_type = "a list of COCO results"
    content = coco.read_bytes(path, content_type)
    columns = _decode_in_chunks(content)
    if columns is not None:
        return columns
    try:
        results = msgspec.json.decode(content, type=ResultsFile).annotations
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        deviations.add(path, len(results), "results in an object with `annotations` instead of a list")
        return Columns.of(results)
    try:
        masks = msgspec.json.decode(content, type=list[MaskResult])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # A list of results may contain a text that looks like the end of an entry.
        return Columns.of(coco.decode(path, content, content_type, list[Result]))
    deviations.add(path, len(masks), "masks without boxes, scored by the boxes that enclose them")
    return _boxes_of_masks(path, masks)


def _decode_in_chunks(content: bytes) -> Columns | None:
    """Columns of a list of results, decoded in pieces of about `CHUNK_SIZE`; None for any other content.

    Structs of 500,000 detections take 100 MB and, as they leave the CPU cache, twice the time. A list is valid
    if all pieces are: a cut within an entry leaves invalid JSON on both sides.
    """
    low, end = content.find(b"[") + 1, content.rfind(b"]")
    if content[: low - 1].strip() or content[end + 1 :].strip() or low > end:
        return None
    decoder, cut = msgspec.json.Decoder(list[Result]), None
    parts: list[Columns] = []
    try:
        while cut or not parts:
            cut = ENTRY_END.search(content, low + CHUNK_SIZE, end)
            results = decoder.decode(b"[%b]" % content[low : cut.start() + 1 if cut else end])
            if parts and not results:
                return None  # a comma behind the last entry
            parts.append(Columns.of(results))
            low = cut.end() if cut else end
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Columns.concat(parts)


def _boxes_of_masks(path: Path, results: list[MaskResult]) -> Columns:
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
    return Columns(
        image_id=np.array([result.image_id for result in results]),
        category_id=np.array([result.category_id for result in results]),
        bbox=boxes,
        score=np.array([result.score for result in results], dtype=np.float64),
        mask_areas=np.asarray(areas, dtype=np.float64),
    )
