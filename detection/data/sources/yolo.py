"""YOLO reader: a text file per image, a line per object.

A line is `class cx cy width height`, fractions of the image size, or `class x1 y1 x2 y2 x3 y3 …`, a polygon, of which
the box is read. Boxes are fractions in float64 until the image sizes are known:

    x1 = (cx - width / 2) * W,  y1 = (cy - height / 2) * H,  x2 = (cx + width / 2) * W,  y2 = (cy + height / 2) * H

in float64, rounded once to float32. Written with 6 decimals, a side is exact to about one pixel in a million.
"""

import os
import posixpath
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.loading.index import Index
from detection.data.sources.checks import MAX_COORDINATE, Problems
from detection.data.sources.corners import RawCorners, yolo_box
from detection.data.sources.digest import Digest
from detection.data.sources.yolo_files import BOX_COLUMNS, SPLITS, Description, YoloFiles, decode_text, describe
from detection.params.datasets import YoloDataset
from detection.text import did_you_mean

Box = tuple[float, float, float, float]
MIN_POLYGON_COLUMNS = 7
"""Class and three points."""


@dataclass(slots=True, kw_only=True)
class YoloLabels:
    """Images and objects of one split as growing columns."""

    problems: Problems
    label_of: dict[int, int]
    """Label of each class index; -1 for a class that the dataset leaves out."""
    names: dict[int, str]
    """Class name of each index."""
    corners: str
    """Meaning of a box, see `YoloDataset.corners`."""
    keypoint_columns: int = 0
    raw: RawCorners | None = None
    """Receives every box as written."""
    files: list[str] = field(default_factory=list)
    """Each image, relative to the dataset folder."""
    counts: list[int] = field(default_factory=list)
    """Number of objects of each image."""
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    """`x1, y1, x2, y2` of each object, flat; fractions or pixels, as `corners` says."""
    labels: list[int] = field(default_factory=list)
    """Label of each object."""

    def read(self, image: str, path: str, content: bytes) -> None:
        """Append an image with the objects of its label file; empty content for none."""
        before = len(self.labels)
        for number, line in enumerate(decode_text(content).splitlines(), 1):
            columns = line.split()
            if columns and not columns[0].startswith("#"):
                self._append(image, f"{path}: line {number}", columns)
        self.files.append(image)
        self.counts.append(len(self.labels) - before)

    def _append(self, image: str, where: str, columns: Sequence[str]) -> None:
        try:
            numbers = [float(one) for one in columns]
        except ValueError:
            self.problems.add("broken_annotation", where, f"{_shortened(columns)} is not a line of numbers")
            return
        if not sum(map(abs, numbers)) < MAX_COORDINATE:
            self.problems.add("broken_annotation", where, f"{_shortened(columns)} has a number that is not finite")
            return
        index = int(numbers[0])
        label = self.label_of.get(index) if index == numbers[0] else None
        if label is None or label < 0:
            self.problems.add("unknown_class", where, self._unknown(columns[0], index, label))
            return
        values = self._box_as_written(numbers[1:])
        if values is None:
            detail = f"{len(columns)} columns; a box has {BOX_COLUMNS}, a polygon 7, 9, 11, …"
            sixth = "; is the sixth a score of predictions?" if len(columns) == BOX_COLUMNS + 1 else ""
            self.problems.add("broken_annotation", where, detail + sixth)
            return
        if self.raw is not None:
            self.raw.add(image, values)
        x1, y1, x2, y2 = yolo_box(self.corners, *values)
        if x2 <= x1 or y2 <= y1:
            self.problems.add("zero_area", where, f"{self.names[index]} with {' '.join(columns[1:5])}")
        else:
            self.boxes.extend((x1, y1, x2, y2))
            self.labels.append(label)

    def _box_as_written(self, values: Sequence[float]) -> Box | None:
        """Return the four numbers of a box, or those of a polygon's box in the same convention."""
        if len(values) == 4 or len(values) == 4 + self.keypoint_columns:
            return values[0], values[1], values[2], values[3]
        if len(values) + 1 < MIN_POLYGON_COLUMNS or len(values) % 2 or self.keypoint_columns:
            return None
        x1, y1, x2, y2 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        if self.corners in ("relative", "0-based"):
            return x1, y1, x2, y2
        return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1

    def _unknown(self, text: str, index: int, label: int | None) -> str:
        if label is not None:
            name = self.names[index]
            return f"{name!r} is not a class of the dataset"
        return f"class index {text}; the indices of the dataset's classes are {_ranges(sorted(self.names))}"


def read(
    dataset: YoloDataset, root: Path, digest: Digest, problems: Problems, raw: RawCorners | None = None
) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits of a dataset.

    Args:
        dataset: Entry of the dataset in `params.yaml`, with the splits that `yolo_files.resolve` adds.
        root: Dataset folder.
        digest: Receives every label file and the files with names and splits.
        problems: Receives the problems; objects and images with problems are left out.
        raw: Receives every box as written.

    Returns:
        Class names, and the index of each split (empty for a split that the dataset lacks). Sizes are 0, and boxes are
        float64, as fractions unless `corners` is in pixels.

    Raises:
        DataError: A file cannot be read.
    """
    description = describe(dataset, root)
    for file in dict.fromkeys((description.file, description.names_file)):
        if file:
            digest.file(file, (root / file).read_bytes())
    names, classes = _classes(dataset, description, problems)
    position = {name: label for label, name in enumerate(classes)}
    files = YoloFiles(root, dataset.labels)
    splits = {}
    for split in SPLITS:
        labels = YoloLabels(
            problems=problems,
            label_of={index: position.get(name, -1) for index, name in names.items()},
            names=names,
            corners=dataset.corners,
            keypoint_columns=description.keypoint_columns,
            raw=raw,
        )
        _read_split(getattr(dataset, split) or (), root, files, digest, labels)
        splits[split] = _pack(labels)
    folders = all(not one.lower().endswith(".txt") for split in SPLITS for one in getattr(dataset, split) or ())
    for file in files.orphans() if folders else ():
        if (root / file).stat().st_size:
            problems.add("missing_image", file, "is the label file of no image")
    return classes, splits


def _classes(
    dataset: YoloDataset, description: Description, problems: Problems
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return the name of each index, and the classes in label order; report names that contradict each other."""
    names, count, where = description.names, description.count, description.names_file
    if not names:
        names = dict(enumerate(dataset.classes or ()))
    elif count is not None and count != len(names):
        detail = f"nc: {count} and {len(names)} names; correct one of them"
        problems.add("broken_annotation", where, detail)
    for name in description.repeated:
        problems.add("duplicate_id", where, f"several classes have the name {name!r}: read as one")
    listed = tuple(dict.fromkeys(name for _, name in sorted(names.items())))
    for name in dataset.classes or ():
        if name not in listed:
            problems.add("unknown_class", where, f"unknown class {name!r}; {did_you_mean(name, listed)}")
    return names, dataset.classes or listed


def _read_split(specs: Sequence[str], root: Path, files: YoloFiles, digest: Digest, labels: YoloLabels) -> None:
    """Read the images of several folders or lists; an image named by two of them is read once."""
    seen: dict[str, str] = {}
    missing: list[str] = []
    for spec in specs:
        is_list = spec.lower().endswith(".txt")
        for image in _listed(spec, root, files, digest, labels.problems) if is_list else files.folder(spec):
            path = files.label(image, "" if is_list else spec)
            stem = os.path.splitext(image)[0]
            if path is None:
                missing.append(image)
            elif stem not in seen:
                content = (root / path).read_bytes()
                digest.file(path, content)
                labels.read(image, path, content)
            elif seen[stem] != image:
                detail = f"and {posixpath.basename(seen[stem])} have the same label file {path}"
                labels.problems.add("duplicate_id", image, detail)
            seen.setdefault(stem, image)
    if labels.files or labels.problems.action("missing_annotation") == "background":
        for image in dict.fromkeys(missing):
            labels.read(image, "", b"")
    elif missing:
        labels.problems.hints.setdefault(
            "missing_annotation",
            f"none of the {len(missing)} images of {', '.join(specs)} has a label file: name their folder with "
            "`labels`, or set prepare.checks.missing_annotation: background if they show no objects",
        )
        for image in dict.fromkeys(missing):
            labels.problems.add("missing_annotation", image, "has no label file")


def _listed(spec: str, root: Path, files: YoloFiles, digest: Digest, problems: Problems) -> Iterator[str]:
    """Yield the images of a list."""
    content = (root / spec).read_bytes()
    digest.file(spec, content)
    seen: set[str] = set()
    for number, line in enumerate(decode_text(content).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        image = files.listed(line, posixpath.dirname(spec))
        if image is None:
            problems.add("missing_image", f"{spec}: line {number}", f"{line.strip()!r} does not exist")
        elif image in seen:
            problems.add("duplicate_id", f"{spec}: line {number}", f"{image} is listed twice")
        else:
            seen.add(image)
            yield image


def _pack(labels: YoloLabels) -> Index:
    """Pack the columns, sorted by image; boxes keep float64 until they are in pixels."""
    boxes: Any = np.array(labels.boxes, dtype=np.float64).reshape(-1, 4)
    stems = [os.path.splitext(file)[0] for file in labels.files]
    short = [posixpath.basename(stem) for stem in stems]
    ids = short if len(set(short)) == len(short) else stems
    flags = np.zeros(len(boxes), dtype=np.bool_)
    index = Index(
        files=np.array([file.encode() for file in labels.files], dtype=np.bytes_),
        ids=np.array([one.encode() for one in ids], dtype=np.bytes_),
        sizes=np.zeros((len(labels.files), 2), dtype=np.int32),
        offsets=np.cumsum([0, *labels.counts], dtype=np.int64),
        boxes=boxes,
        labels=np.array(labels.labels, dtype=np.int64),
        difficult=flags,
        crowd=flags,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32),
    )
    return index.select(np.argsort(index.files, kind="stable"))


def _shortened(columns: Sequence[str]) -> str:
    text = " ".join(columns)
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _ranges(numbers: Sequence[int]) -> str:
    """Text of sorted whole numbers: `0 to 3`, `0, 2`."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
