"""The COCO reader: instances JSON beside folders of pictures.

Category ids, which have gaps, become labels 0 … K-1 in the order of the ids of the first training file; other
files are matched by the names of their categories.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index, join
from detection.data.sources.coco_json import Category, Columns, Image, Instances, content_hash, load
from detection.data.sources.digest import Digest
from detection.data.sources.problems import Problems
from detection.data.sources.voc_layout import is_inside
from detection.errors import DataError
from detection.params.datasets import CocoDataset, CocoSplit
from detection.text import did_you_mean

EXACT = 2**53
"""From here on a double does not hold every whole number."""
FARTHEST = 1e9
"""A coordinate beyond this many pixels is no coordinate; NaN is not below it either."""


def read(
    dataset: CocoDataset, root: Path, digest: Digest, faults: Problems
) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits.

    Args:
        dataset: The dataset's entry of `params.yaml`.
        root: Folder of the raw data.
        digest: Gets what was read of every annotation file.
        faults: Gets what is wrong; the object or picture concerned is left out.

    Returns:
        Class names in the order of their ids, and the index of each split (empty where the dataset names
        none); a size is 0 where the file has none.

    Raises:
        DataError: A file is missing or is no JSON.
    """
    classes: tuple[str, ...] = ()
    splits = {}
    for name in ("train", "val", "test"):
        parts = []
        for split in getattr(dataset, name):
            where = split.annotations
            instances = load(annotations_path(root, split), where, faults)
            classes = classes or _class_names(instances.categories)
            parts.append(_packed(instances, classes, split, digest, faults))
        splits[name] = join(parts)
    return classes, splits


def annotations_path(root: Path, split: CocoSplit) -> Path:
    """The instances file of a split.

    Raises:
        DataError: It is not there.
    """
    path = root / split.annotations
    if not path.is_file():
        raise DataError(f"the annotations {split.annotations} were looked for at {path} and are not there")
    return path


def _class_names(categories: Sequence[Category]) -> tuple[str, ...]:
    ordered = sorted(categories, key=attrgetter("id"))
    return tuple(dict.fromkeys(category.name for category in ordered))


def _packed(
    instances: Instances, classes: tuple[str, ...], split: CocoSplit, digest: Digest, faults: Problems
) -> Index:
    """Pictures in the order of the file, those without annotations too, as arrays."""
    where = split.annotations
    columns = Columns.of(instances.annotations)
    images = instances.images
    ids = np.array([image.id for image in images], dtype=np.int64)
    if len(ids) and np.abs(ids).max() >= EXACT:
        raise DataError(f"{where}: picture ids must be below 2^53, from where on JSON's numbers are inexact")
    digest.entry(where, content_hash(instances, columns))
    usable = _usable_images(images, ids, split, faults)
    owners = _rows_of(columns.image_id, ids)
    labels = _labels(columns.category_id, instances.categories, classes, where, faults)
    kept = _usable_annotations(columns, owners, labels, instances, classes, split, faults)
    order = _by_picture(owners, kept)
    boxes = columns.bbox[order]
    drawn = boxes[:, 2] * boxes[:, 3]
    boxes[:, 2:] += boxes[:, :2]
    crowd = columns.iscrowd[order]
    counts = np.bincount(owners[order], minlength=len(ids))
    index = Index(
        files=_encoded([_file(split.images, image.file_name) for image in images]),
        ids=_encoded(list(map(str, ids.tolist()))),
        sizes=np.array([side for i in images for side in (i.height, i.width)], np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes.astype(np.float32),
        labels=labels[order],
        difficult=columns.ignore[order] & ~crowd,
        crowd=crowd,
        areas=np.where(columns.area[order] < 0, drawn, columns.area[order]).astype(np.float32),
    )
    return index if usable.all() else index.select(np.flatnonzero(usable))


def _file(folder: str, name: str) -> str:
    """A picture relative to the dataset's folder."""
    file = f"{folder}/{name}"
    return posixpath.normpath(file) if "./" in file or "//" in file else file


def _encoded(names: list[str]) -> NDArray[np.bytes_]:
    """All names to UTF-8 in one go."""
    parts = "\0".join(names).encode().split(b"\0") if names else []
    if len(parts) != len(names):  # a name with a NUL in it, which `_usable_images` refuses
        parts = [name.replace("\0", "").encode() for name in names]
    return np.array(parts, dtype=np.bytes_)


def _by_picture(owners: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The kept annotations in the order of their pictures, those of one picture as they were.

    Sorts one number made of both, which numpy does ten times as fast as a stable argsort.
    """
    rows = np.flatnonzero(kept)
    return np.sort(owners[rows] << 32 | rows) & 0xFFFFFFFF


def _rows_of(wanted: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T], the first row of `ids` that has each wanted number, -1 where none has."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    if ids.min() >= 0 and ids.max() < 20 * len(ids):  # a table is five times as fast as a search
        rows = np.full(ids.max() + 2, -1, dtype=np.int64)
        rows[ids[::-1]] = np.arange(len(ids))[::-1]
        place = np.where((wanted >= 0) & (wanted <= ids.max()), wanted, ids.max() + 1)
        return np.where(place == np.floor(place), rows[place.astype(np.int64)], -1)
    order = np.argsort(ids, kind="stable")
    place = np.searchsorted(ids[order].astype(np.float64), wanted)
    rows = order[np.minimum(place, len(ids) - 1)]
    return np.where(ids[rows] == wanted, rows, -1)


def _labels(
    wanted: NDArray[np.float64],
    categories: Sequence[Category],
    classes: tuple[str, ...],
    where: str,
    faults: Problems,
) -> NDArray[np.int64]:
    """[T], labels of category ids, by the names of the categories; -1 where the dataset has no such class."""
    ids = [category.id for category in categories]
    for number, count in Counter(ids).items():
        if count > 1:
            faults.add("duplicate_id", where, f"category id {number} is given to {count} categories")
    numbers = {name: label for label, name in enumerate(classes)}
    labels = np.array([numbers.get(category.name, -1) for category in categories] + [-1], dtype=np.int64)
    return labels[_rows_of(wanted, np.array(ids, dtype=np.int64))]  # row -1 is the last, which is -1


def _usable_images(
    images: Sequence[Image], ids: NDArray[np.int64], split: CocoSplit, faults: Problems
) -> NDArray[np.bool_]:
    """[N], False for pictures with an unsafe name or an id that an earlier one has."""
    usable = np.ones(len(images), dtype=np.bool_)
    for row, image in enumerate(images):
        if not is_inside(image.file_name):
            detail = f"file_name {image.file_name!r} leads out of the folder {split.images}"
            faults.add("unsafe_name", split.annotations, detail)
            usable[row] = False
    first = _rows_of(ids.astype(np.float64), ids)
    for row in np.flatnonzero(first != np.arange(len(ids))).tolist():
        names = f"{images[first[row]].file_name} and {images[row].file_name}"
        faults.add("duplicate_id", split.annotations, f"{names} share the id {images[row].id}")
        usable[row] = False
    return usable


def _usable_annotations(
    columns: Columns,
    owners: NDArray[np.int64],
    labels: NDArray[np.int64],
    instances: Instances,
    classes: tuple[str, ...],
    split: CocoSplit,
    faults: Problems,
) -> NDArray[np.bool_]:
    """[T], which annotations are taken; the others are noted, each for the first thing wrong with it."""
    left = np.ones(len(owners), dtype=np.bool_)

    def sort_out(bad: NDArray[np.bool_], kind: str, describe: Callable[[int], str]) -> None:
        for row in np.flatnonzero(bad & left).tolist():
            of = f" of picture {int(columns.image_id[row])}" if owners[row] >= 0 else ""
            faults.add(kind, f"{split.annotations}: annotations[{row}]{of}", describe(row))
        left[bad] = False

    def unknown(row: int) -> str:
        number = int(columns.category_id[row])
        names = [category.name for category in instances.categories if category.id == number]
        if names:
            return f"{names[0]!r} is none of the dataset's classes; {did_you_mean(names[0], classes)}"
        return f"names category {number}, which is not listed"

    bbox = columns.bbox
    sort_out(
        owners < 0,
        "broken_annotation",
        lambda row: f"names picture {columns.image_id[row]:g}, which is not listed",
    )
    sort_out(
        np.asarray(~(np.abs(bbox).sum(axis=1) < FARTHEST)),
        "broken_annotation",
        lambda row: f"{bbox[row].tolist()} is no box in pixels",
    )
    sort_out(labels < 0, "unknown_class", unknown)
    sort_out(
        np.asarray(bbox[:, 2:].min(axis=1, initial=np.inf) <= 0),
        "zero_area",
        lambda row: f"width {bbox[row, 2]:g}, height {bbox[row, 3]:g}",
    )
    return left
