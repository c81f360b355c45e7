"""Conventions of box coordinates: which one a dataset uses, and conversion to `x1, y1, x2, y2`.

A whole dataset in another convention than the one it is read in has most of its boxes outside the images or
without area. That is one error that names the likely convention, not a dataset of the few boxes that remain.

Letters: T boxes.
"""

from array import array
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from detection.data.sources.checks import MAX_COORDINATE
from detection.errors import DataError
from detection.params.datasets import FRACTIONS

Floats = NDArray[np.float64]
MIN_BOXES = 3
"""Invalid boxes from which another convention is suggested."""
MIN_INVALID, MAX_INVALID = 0.3, 0.05
"""Fraction of invalid boxes above which the present convention is doubted, and up to which another one fits."""
TOLERANCE_PX = 2.0
DESCRIPTIONS = {
    "0-based": "corners x1, y1, x2, y2",
    "1-based": "corners xmin, ymin, xmax, ymax from pixel 1",
    "swapped": "opposite corners in any order",
    "relative": "fractions of the image size",
    "width-height": "width and height in the place of the second corner",
    "center": "center, width and height as fractions of the image size",
    "center-pixels": "center, width and height in pixels",
}
CANDIDATES = {
    "voc": ("1-based", "width-height", "relative", "swapped"),
    "coco": ("width-height", "0-based", "relative", "swapped"),
    "yolo": ("center", "relative", "center-pixels", "0-based"),
}
"""Conventions that are tried, per format."""


def voc_box(corners: str, x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    """Convert the corners of a VOC object; fractions stay fractions."""
    if corners == "1-based":
        return x1 - 1, y1 - 1, x2, y2
    if corners == "swapped":
        return min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2), max(y1, y2)
    if corners == "width-height":
        return x1 - 1, y1 - 1, x1 - 1 + x2, y1 - 1 + y2
    return x1, y1, x2, y2


def coco_boxes(corners: str, values: Floats) -> Floats:
    """Convert COCO's `bbox` [T, 4] to `x, y, width, height`; fractions stay fractions."""
    if corners == "0-based":
        return np.concatenate([values[:, :2], values[:, 2:] - values[:, :2]], axis=1)
    if corners == "swapped":
        return np.concatenate([values[:, :2] + np.minimum(values[:, 2:], 0), np.abs(values[:, 2:])], axis=1)
    return values


def yolo_box(corners: str, a: float, b: float, c: float, d: float) -> tuple[float, float, float, float]:
    """Convert the four numbers of a YOLO box to corners; fractions stay fractions."""
    if corners in ("center", "center-pixels"):
        return a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return a, b, c, d


class RawCorners:
    """Boxes as written, with their images."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._values = array("d")

    def add(self, file: str, values: tuple[float, float, float, float]) -> None:
        """Add a box of an image."""
        self._files.append(file)
        self._values.extend(values)

    def add_all(self, files: list[str], rows: NDArray[np.int64], values: Floats) -> None:
        """Add boxes [T, 4] of the images `files[rows]`; boxes with a negative index are left out."""
        known = rows >= 0
        self._files += [files[row] for row in rows[known].tolist()]
        self._values.extend(values[known].ravel().tolist())

    def check(self, name: str, source_format: str, corners: str, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse boxes that another convention than `corners` explains.

        Args:
            name: Dataset in params.yaml.
            source_format: `voc`, `coco` or `yolo`.
            corners: Convention in which the boxes were read.
            sizes: Height and width of each image.

        Raises:
            DataError: Many boxes are invalid, or most and no convention explains them.
        """
        known = np.array([file in sizes for file in self._files], dtype=np.bool_)
        values = np.array(self._values, dtype=np.float64).reshape(-1, 4)[known]
        sides = np.array([sizes[file] for file in self._files if file in sizes], dtype=np.float64).reshape(-1, 2)
        if not len(values):
            return
        invalid, lost = _invalid(source_format, corners, values, sides)
        if invalid.sum() < MIN_BOXES or invalid.mean() < MIN_INVALID:
            return
        found = f"dataset {name}: {invalid.sum():,} of {len(values):,} boxes lie outside their image or have no area"
        for other in CANDIDATES[source_format]:
            if other == corners or (other == "swapped" and invalid.mean() < 0.5):
                continue
            if _invalid(source_format, other, values, sides)[0].mean() <= MAX_INVALID:
                raise DataError(
                    f"{found}; they look like {DESCRIPTIONS[other]}: set `corners: {other}` at datasets.{name}"
                )
        if lost.mean() > 0.5:
            raise DataError(
                f"{found}, and no other convention of `corners` fits them; compare the coordinates of the "
                "annotations with the sizes of the images"
            )


def _invalid(
    source_format: str, corners: str, values: Floats, sides: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[T] masks of the boxes that lie outside or have no area in a convention, and of those with nothing inside."""
    if source_format in ("voc", "yolo"):
        convert = voc_box if source_format == "voc" else yolo_box
        boxes = np.array([convert(corners, *row) for row in values.tolist()]).reshape(-1, 4)
    else:
        boxes = coco_boxes(corners, values)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    if corners in FRACTIONS:
        boxes = boxes * sides[:, [1, 0, 1, 0]]
    fractions = (np.abs(values) <= 1).all(axis=1) & (corners not in FRACTIONS)
    one = 1.0 if source_format == "voc" and corners in ("1-based", "swapped") else 0.0
    flat = (boxes[:, 2:] - one <= boxes[:, :2]).any(axis=1) | (fractions & (sides > 2).all(axis=1))
    limits = sides[:, ::-1]
    beyond = (boxes[:, :2] < -TOLERANCE_PX).any(axis=1) | (boxes[:, 2:] > limits + TOLERANCE_PX).any(axis=1)
    gone = (boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= limits).any(axis=1)
    return np.asarray(flat | beyond), np.asarray(flat | gone)


def shortest_sides(boxes: Floats) -> Floats:
    """[T] smaller of width and height of boxes [T, 4] as x, y, width, height; negative for an inverted box."""
    return np.asarray(np.minimum(boxes[:, 2], boxes[:, 3]))


def out_of_range(boxes: Floats) -> NDArray[np.bool_]:
    """[T], True for boxes [T, 4] with coordinates that no image has, NaN included."""
    if np.abs(boxes).max(initial=0) < MAX_COORDINATE / 4:  # sums along a short axis are slow
        return np.zeros(len(boxes), dtype=np.bool_)
    return np.asarray(~(np.abs(boxes).sum(axis=1) < MAX_COORDINATE))
