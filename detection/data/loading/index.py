"""Packed index of a split: images and boxes in a few numpy arrays.

Lists of Python objects would grow every worker by 100 MB per epoch at COCO's size, because reading an object
writes its reference count. Arrays stay shared between the forked workers.

Letters: N images, T boxes in total, M boxes of one image, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ID_DIGITS = 18
"""Number of digits that always fits 64 bits; cameras write more in file names that are timestamps."""


class Record(NamedTuple):
    """One image of an index; the arrays are views."""

    file: str
    """Image file, relative to the dataset folder, with forward slashes."""
    id: str
    """The dataset's name of the image: VOC's file stem, COCO's image id."""
    height: int
    width: int
    boxes: NDArray[np.float32]
    """[M, 4] `x1, y1, x2, y2`, absolute pixels, 0-based, half-open."""
    labels: NDArray[np.int64]
    """[M] class indices from 0."""
    difficult: NDArray[np.bool_]
    """[M] VOC's flag."""
    crowd: NDArray[np.bool_]
    """[M] COCO's `iscrowd`."""
    areas: NDArray[np.float32]
    """[M] COCO's `area` (of the segmentation, if any), else the box area."""
    upright: bool = False
    """The file is turned as its EXIF orientation says; size and boxes are those of the turned image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Index:
    """All images of one split. `index[i]` is a `Record`, `len(index)` the number of images."""

    files: NDArray[np.bytes_]
    """[N] utf-8, relative to the dataset folder."""
    ids: NDArray[np.bytes_]
    """[N] utf-8."""
    sizes: NDArray[np.int32]
    """[N, 2] height and width in pixels."""
    offsets: NDArray[np.int64]
    """[N + 1] image i has the boxes `offsets[i]:offsets[i + 1]`."""
    boxes: NDArray[np.float32]
    """[T, 4]."""
    labels: NDArray[np.int64]
    """[T]."""
    difficult: NDArray[np.bool_]
    """[T]."""
    crowd: NDArray[np.bool_]
    """[T]."""
    areas: NDArray[np.float32]
    """[T]."""
    category_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[C] ids of the classes in COCO files, as in the annotation file of the split; empty for 1, 2, …"""
    windows: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 5), np.int32))
    """[N, 5] place of each row in a larger image, see `tiles`; empty if rows are whole images."""
    upright: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """[N] mask of the images that are turned as their EXIF orientation says; empty if none is."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Record:
        part = slice(self.offsets[i], self.offsets[i + 1])
        height, width = self.sizes[i].tolist()
        columns: dict[str, Any] = {name: getattr(self, name)[part] for name in BOX_COLUMNS}
        upright = bool(len(self.upright) and self.upright[i])
        return Record(self.files[i].decode(), self.ids[i].decode(), height, width, **columns, upright=upright)

    def image_ids(self) -> NDArray[np.int64]:
        """[N] integer ids for COCO files: the dataset's own if all are distinct numbers, else 1, 2, …."""
        names = [name.decode() for name in self.ids]
        numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= MAX_ID_DIGITS]
        if len(set(numbers)) == len(self):
            return np.array(numbers, dtype=np.int64)
        return np.arange(1, len(self) + 1, dtype=np.int64)

    def to_category_ids(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of labels in COCO files: those of the split's annotation file, which may have gaps, else labels + 1."""
        return self.category_ids[labels] if len(self.category_ids) else labels + 1

    def to_labels(self, category_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels of ids in COCO files.

        Raises:
            KeyError: No class has this id.
        """
        if not len(self.category_ids):
            return category_ids - 1
        label_of = {number: label for label, number in enumerate(self.category_ids.tolist())}
        return np.array([label_of[number] for number in category_ids.tolist()], dtype=np.int64)

    def image_rows(self) -> NDArray[np.int64]:
        """[T] row of each box's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def learnable(self, train_difficult: bool = False) -> NDArray[np.bool_]:
        """[T] mask of the objects that training learns, and without difficult ones of those that metrics count."""
        return ~self.crowd & (train_difficult | ~self.difficult)

    def select(self, rows: NDArray[np.int64]) -> "Index":
        """Index of some images, in the order of `rows`."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        box_rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        images: dict[str, Any] = {name: getattr(self, name)[rows] for name in IMAGE_COLUMNS}
        images |= {name: getattr(self, name)[rows] for name in OPTIONAL_COLUMNS if len(getattr(self, name))}
        return replace(self, offsets=offsets, **images, **self._boxes(box_rows))

    def scaled(self) -> "Index":
        """Index whose boxes, fractions of the image size in float32 or float64, are in pixels, rounded once."""
        sides = self.sizes[self.image_rows()][:, [1, 0, 1, 0]].astype(np.float64)
        boxes = (self.boxes * sides).astype(np.float32)
        return replace(self, boxes=boxes, areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))

    def keep_boxes(self, mask: NDArray[np.bool_]) -> "Index":
        """Index of all images with only the boxes where `mask` [T] is true."""
        before = np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)
        return replace(self, offsets=before[self.offsets], **self._boxes(mask))

    def _boxes(self, selection: NDArray[np.generic]) -> dict[str, Any]:
        return {name: getattr(self, name)[selection] for name in BOX_COLUMNS}

    def save(self, path: str | Path) -> None:
        """Write an uncompressed npz file; optional arrays only where they are set."""
        arrays: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("category_ids", *OPTIONAL_COLUMNS):
            if not len(arrays[name]):
                del arrays[name]
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Index":
        """Read a file written by `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{one.name: arrays[one.name] for one in fields(cls) if one.name in arrays})


IMAGE_COLUMNS = ("files", "ids", "sizes")
"""Arrays of an index with one row per image."""
OPTIONAL_COLUMNS = ("windows", "upright")
"""The same, or no row at all."""
BOX_COLUMNS = ("boxes", "labels", "difficult", "crowd", "areas")
"""Arrays of an index, and of a record, with one row per box."""


def join(parts: Sequence[Index]) -> Index:
    """Concatenate indexes, with the category ids of the first; none give an empty index."""
    category_ids = next((part.category_ids for part in parts), np.zeros(0, np.int64))
    parts = [pack([]), *parts]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in IMAGE_COLUMNS + BOX_COLUMNS
    }
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Index(offsets=offsets, category_ids=category_ids, **columns)


def pack(records: list[Record]) -> Index:
    """Pack records into an index, in their order."""
    counts = np.array([len(record.boxes) for record in records], dtype=np.int64)
    empty: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "difficult": np.zeros(0, np.bool_),
        "crowd": np.zeros(0, np.bool_),
        "areas": np.zeros(0, np.float32),
    }
    columns: dict[str, Any] = {
        name: np.concatenate([start, *(getattr(one, name) for one in records)]).astype(start.dtype, copy=False)
        for name, start in empty.items()
    }
    return Index(
        files=np.array([record.file.encode() for record in records], dtype=np.bytes_),
        ids=np.array([record.id.encode() for record in records], dtype=np.bytes_),
        sizes=np.array([(r.height, r.width) for r in records], dtype=np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        **columns,
    )
