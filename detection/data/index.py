"""The packed index: one split's pictures and boxes as a handful of numpy arrays.

A list of dictionaries grows every loader process by a hundred megabytes an epoch at COCO's size, because
reading a Python object writes its reference count; arrays are shared between processes and never grow.

Letters: N pictures, T boxes in all, M boxes of one picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PER_BOX = ("boxes", "labels", "difficult", "crowd", "areas")
"""The arrays of an index that have a row a box."""

LONGEST = 18
"""Digits of a number that surely fits 64 bits; cameras that name pictures by the time write more."""


class Record(NamedTuple):
    """One picture's row of the index; the arrays are views."""

    file: str
    """Picture, relative to the dataset's folder, with forward slashes."""
    id: str
    """What the dataset calls the picture: VOC's file stem, COCO's image id."""
    height: int
    width: int
    boxes: NDArray[np.float32]
    """[M, 4] `x1, y1, x2, y2`, absolute pixels, 0-based, half-open."""
    labels: NDArray[np.int64]
    """[M], counted from 0."""
    difficult: NDArray[np.bool_]
    """[M], VOC's flag."""
    crowd: NDArray[np.bool_]
    """[M], COCO's `iscrowd`."""
    areas: NDArray[np.float32]
    """[M], COCO's `area` (of the segmentation where there is one), else the box's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Index:
    """All pictures of one split.

    Indexing gives a `Record`; `len` counts pictures.
    """

    files: NDArray[np.bytes_]
    """[N] utf-8, relative to the dataset's folder."""
    ids: NDArray[np.bytes_]
    """[N] utf-8."""
    sizes: NDArray[np.int32]
    """[N, 2] height and width in pixels."""
    offsets: NDArray[np.int64]
    """[N + 1]: picture i has boxes `offsets[i]:offsets[i + 1]`."""
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

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Record:
        part = slice(self.offsets[i], self.offsets[i + 1])
        return Record(
            file=self.files[i].decode(),
            id=self.ids[i].decode(),
            height=int(self.sizes[i, 0]),
            width=int(self.sizes[i, 1]),
            boxes=self.boxes[part],
            labels=self.labels[part],
            difficult=self.difficult[part],
            crowd=self.crowd[part],
            areas=self.areas[part],
        )

    def image_ids(self) -> NDArray[np.int64]:
        """[N] whole numbers for COCO files: the dataset's own ids where all are numbers, else 1, 2, …."""
        names = [name.decode() for name in self.ids]
        numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) <= LONGEST]
        if len(set(numbers)) == len(self):
            return np.array(numbers, dtype=np.int64)
        return np.arange(1, len(self) + 1, dtype=np.int64)

    def image_rows(self) -> NDArray[np.int64]:
        """[T], the row of each box's picture."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def select(self, rows: NDArray[np.int64]) -> "Index":
        """The index of some pictures, in the given order."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        taken = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        chosen = replace(
            self, files=self.files[rows], ids=self.ids[rows], sizes=self.sizes[rows], offsets=offsets
        )
        return chosen._with_boxes(taken)

    def keep_boxes(self, kept: NDArray[np.bool_]) -> "Index":
        """The index with only the boxes [T] that are kept, and all pictures."""
        before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return replace(self, offsets=before[self.offsets])._with_boxes(kept)

    def _with_boxes(self, taken: NDArray[np.generic]) -> "Index":
        """Pick boxes and what belongs to each, `offsets` being those of the picked ones already."""
        columns: dict[str, Any] = {name: getattr(self, name)[taken] for name in PER_BOX}
        return replace(self, **columns)

    def save(self, path: str | Path) -> None:
        """Write as an uncompressed npz."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Index":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def join(parts: Sequence[Index]) -> Index:
    """The pictures of all parts, in their order; no part at all is an empty index."""
    parts = [pack([]), *parts]
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    names = ("files", "ids", "sizes", *PER_BOX)
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return Index(offsets=offsets, **columns)


def pack(records: list[Record]) -> Index:
    """Pack records into an index, in their order."""
    counts = np.array([len(record.boxes) for record in records], dtype=np.int64)

    def column(name: str, empty: NDArray[np.generic]) -> NDArray[np.generic]:
        parts = [getattr(record, name) for record in records]
        return np.concatenate([empty, *parts]).astype(empty.dtype, copy=False)

    return Index(
        files=np.array([record.file.encode() for record in records], dtype=np.bytes_),
        ids=np.array([record.id.encode() for record in records], dtype=np.bytes_),
        sizes=np.array([(r.height, r.width) for r in records], dtype=np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=column("boxes", np.zeros((0, 4), np.float32)),  # type: ignore[arg-type]
        labels=column("labels", np.zeros(0, np.int64)),  # type: ignore[arg-type]
        difficult=column("difficult", np.zeros(0, np.bool_)),  # type: ignore[arg-type]
        crowd=column("crowd", np.zeros(0, np.bool_)),  # type: ignore[arg-type]
        areas=column("areas", np.zeros(0, np.float32)),  # type: ignore[arg-type]
    )
