"""Detections of a split as packed arrays.

Letters: D detections of the split, M detections of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detection.data.loading.index import Index


@dataclass(frozen=True, slots=True, eq=False)
class SplitDetections:
    """Detections on the images of an `Index`, in any order."""

    images: NDArray[np.int64]
    """[D] rows of the images in the index."""
    boxes: NDArray[np.float32]
    """[D, 4] `x1, y1, x2, y2`, absolute pixels of the original image, 0-based, half-open."""
    scores: NDArray[np.float32]
    """[D] confidence."""
    labels: NDArray[np.int64]
    """[D] classes, from 0."""

    def __post_init__(self) -> None:
        count = len(self.images)
        assert self.boxes.shape == (count, 4), self.boxes.shape
        assert self.scores.shape == self.labels.shape == (count,), (self.scores.shape, self.labels.shape)

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def pack(cls, images: ArrayLike, boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike) -> "SplitDetections":
        """Pack anything that numpy can convert, cast to the types of the fields."""
        return cls(
            np.asarray(images, dtype=np.int64).reshape(-1),
            np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
            np.asarray(scores, dtype=np.float32).reshape(-1),
            np.asarray(labels, dtype=np.int64).reshape(-1),
        )

    @classmethod
    def of_image(cls, image: int, boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike) -> "SplitDetections":
        """Detections of one image.

        Args:
            image: Row of the image in the index.
            boxes: [M, 4] `x1, y1, x2, y2` in pixels of the original image.
            scores: [M] confidence.
            labels: [M] classes, from 0.
        """
        return cls.pack(np.full(np.size(scores), image), boxes, scores, labels)

    @classmethod
    def concat(cls, parts: Sequence["SplitDetections"]) -> "SplitDetections":
        """Concatenate parts in order; no parts give no detections."""
        parts = [cls.pack([], [], [], []), *parts]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def select(self, indices: NDArray[Any]) -> "SplitDetections":
        """Return the detections selected by a mask [D] or by indices."""
        return SplitDetections(*(getattr(self, field.name)[indices] for field in fields(self)))

    def to_coco(self, index: Index) -> list[dict[str, Any]]:
        """Return the list of a COCO results file.

        Boxes are `x, y, width, height`; image and category ids are those of the dataset's annotation file (see
        `Index.image_ids` and `Index.to_category_ids`). Sizes are computed in float64, so that `from_coco`
        restores the same float32 corners.
        """
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(
            index.image_ids()[self.images].tolist(),
            index.to_category_ids(self.labels).tolist(),
            boxes.tolist(),
            self.scores.tolist(),
            strict=True,
        )
        return [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in columns
        ]

    @classmethod
    def from_coco(cls, index: Index, results: Sequence[Mapping[str, Any]]) -> "SplitDetections":
        """Read the list that `to_coco` returned for the same index.

        Raises:
            KeyError: An image or category id is not in the index.
        """
        row_of = {image_id: row for row, image_id in enumerate(index.image_ids().tolist())}
        boxes = np.array([one["bbox"] for one in results], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls.pack(
            [row_of[one["image_id"]] for one in results],
            boxes,
            [one["score"] for one in results],
            index.to_labels(np.array([one["category_id"] for one in results], dtype=np.int64)),
        )


def describe_ids(index: Index, classes: Sequence[str]) -> dict[str, Any]:
    """Meaning of the ids in `to_coco`: `{categories: [{id, name}], images: [{id, file_name}]}`.

    Args:
        index: The split.
        classes: Class names in label order.
    """
    category_ids = index.to_category_ids(np.arange(len(classes))).tolist()
    files = (name.decode() for name in index.files.tolist())
    return {
        "categories": [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)],
        "images": [{"id": i, "file_name": name} for i, name in zip(index.image_ids().tolist(), files, strict=True)],
    }
