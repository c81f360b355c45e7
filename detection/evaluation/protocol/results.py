"""A split's detections, packed: a handful of arrays instead of a list of dictionaries.

Letters: D detections in all, N pictures of the index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detection.data.index import Index


@dataclass(frozen=True, slots=True, eq=False)
class SplitDetections:
    """Detections over the pictures of an `Index`, in any order."""

    images: NDArray[np.int64]
    """[D], the picture's row in the index."""
    boxes: NDArray[np.float32]
    """[D, 4] `x1, y1, x2, y2`, absolute pixels of the original picture, 0-based, half-open."""
    scores: NDArray[np.float32]
    """[D]."""
    labels: NDArray[np.int64]
    """[D], classes from 0."""

    def __post_init__(self) -> None:
        count = len(self.images)
        assert self.boxes.shape == (count, 4), self.boxes.shape
        assert self.scores.shape == self.labels.shape == (count,), (self.scores.shape, self.labels.shape)

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def pack(
        cls, images: ArrayLike, boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike
    ) -> "SplitDetections":
        """Results from anything numpy reads, cast to the packed types; shapes as in the fields."""
        return cls(
            np.asarray(images, dtype=np.int64).reshape(-1),
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
            np.asarray(scores, dtype=np.float32).reshape(-1),
            np.asarray(labels, dtype=np.int64).reshape(-1),
        )

    @classmethod
    def of_image(
        cls, image: int, boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike
    ) -> "SplitDetections":
        """The detections of one picture.

        Args:
            image: The picture's row in the index.
            boxes: [M, 4], `x1, y1, x2, y2` in pixels of the original picture.
            scores: [M].
            labels: [M], classes from 0.
        """
        return cls.pack(np.full(np.size(scores), image), boxes, scores, labels)

    @classmethod
    def concat(cls, parts: Sequence["SplitDetections"]) -> "SplitDetections":
        """Join parts in their order; no parts give no detections."""
        parts = [cls.pack([], [], [], []), *parts]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def select(self, rows: NDArray[Any]) -> "SplitDetections":
        """The detections of some rows, by a mask [D] or row numbers."""
        return SplitDetections(self.images[rows], self.boxes[rows], self.scores[rows], self.labels[rows])

    def to_coco(self, index: Index) -> list[dict[str, Any]]:
        """As the list a COCO results file holds.

        Boxes are `x, y, width, height`, category ids count from 1, image ids are `index.image_ids()`.
        Sides are taken in float64, so that `from_coco` gives the same float32 corners back.
        """
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(
            index.image_ids()[self.images].tolist(),
            (self.labels + 1).tolist(),
            boxes.tolist(),
            self.scores.tolist(),
            strict=True,
        )
        return [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in columns
        ]

    @classmethod
    def from_coco(cls, index: Index, rows: Sequence[Mapping[str, Any]]) -> "SplitDetections":
        """Read back what `to_coco` wrote for the same index.

        Raises:
            KeyError: A picture that the index does not have.
        """
        row_of = {image_id: row for row, image_id in enumerate(index.image_ids().tolist())}
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls.pack(
            [row_of[row["image_id"]] for row in rows],
            boxes,
            [row["score"] for row in rows],
            [row["category_id"] - 1 for row in rows],
        )
