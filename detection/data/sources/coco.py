"""COCO reader: instances JSON beside image folders.

`load` decodes and checks a file, for `read` and for `detection score`. `read` packs the splits of a dataset:
category ids, which may have gaps, become labels 0 to K-1 in the order of the ids of the first training file;
other files are matched by category name.

Letters: N images, T annotations.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index, join
from detection.data.sources import coco_lenient
from detection.data.sources.checks import Problems
from detection.data.sources.corners import RawCorners, coco_boxes, out_of_range, shortest_sides
from detection.data.sources.digest import Digest
from detection.data.sources.layout import is_inside
from detection.data.sources.voc_files import spelled_files
from detection.errors import DataError
from detection.params.datasets import CocoDataset, CocoSplit
from detection.text import did_you_mean

T = TypeVar("T")
Id = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]  # fits int64
Reference = Id | float  # pandas writes the ids of annotations as 7.0
Side = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Box = tuple[float, float, float, float]
"""`x, y, width, height` in pixels, 0-based."""
Flag = Literal[0, 1] | bool


class Image(msgspec.Struct, gc=False):
    """Image entry; `detection score` needs only the id."""

    id: Id
    text_id: str = ""
    """Id as written, if it is not a number."""
    file_name: str = ""
    height: Side | None = None
    width: Side | None = None
    neg_category_ids: Any = None
    """Categories that LVIS knows to be absent; None in COCO's files."""


class Annotation(msgspec.Struct, gc=False):
    """Object entry; polygons are skipped, which are most of the file."""

    image_id: Reference
    category_id: Reference
    bbox: Box
    area: float | None = None
    iscrowd: Flag = 0
    ignore: Flag = 0
    id: int | float | str | None = None


class Category(msgspec.Struct):
    """Class entry."""

    id: Id
    name: str


class Document(msgspec.Struct):
    """Instances file."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class RawDocument(msgspec.Struct):
    """Instances file with undecoded entries, to find the invalid ones."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


@dataclass(slots=True, kw_only=True, eq=False)
class Instances:
    """Decoded instances file; columns with one row per annotation have COCO's names."""

    where: str
    """Name of the file in problems."""
    problems: Problems
    images: list[Image]
    categories: list[Category]
    ids: NDArray[np.int64]
    """[N] image ids."""
    unique: NDArray[np.bool_]
    """[N], False for an image whose id an earlier image has."""
    annotation_ids: Sequence[Any]
    """[T] ids as written, None if missing; only pycocotools uses them."""
    image_id: NDArray[Any]
    """[T], int64, or float64 if the file has floats."""
    category_id: NDArray[Any]
    """[T], likewise."""
    bbox: NDArray[np.float64]
    """[T, 4] `x, y, width, height`."""
    area: NDArray[np.float64]
    """[T], NaN if missing."""
    iscrowd: NDArray[np.bool_]
    """[T]."""
    ignore: NDArray[np.bool_]
    """[T]."""
    image_rows: NDArray[np.int64]
    """[T] rows of `images`; -1 for an unlisted image."""
    category_rows: NDArray[np.int64]
    """[T] rows of `categories`; -1 for an unlisted category."""
    valid: NDArray[np.bool_]
    """[T], True for annotations without a problem so far."""

    def reject(self, bad: NDArray[np.bool_], problem_type: str, describe: Callable[[int], str]) -> None:
        """Report the annotations that are bad and still valid, and mark them as invalid."""
        for row in np.flatnonzero(bad & self.valid).tolist():
            image = f" of image {self.image_id[row]:.0f}" if self.image_rows[row] >= 0 else ""
            self.problems.add(problem_type, f"{self.where}: annotations[{row}]{image}", describe(row))
        self.valid &= ~bad

    def content_hash(self) -> str:
        """Hash of the decoded values, a tenth of the file."""
        names = [image.file_name for image in self.images]
        names += [f"{category.id}\0{category.name}" for category in self.categories]
        content = blake2b("\n".join(names).encode(), digest_size=16)
        numbers = [side or 0 for image in self.images for side in (image.id, image.height, image.width)]
        content.update(np.array(numbers, dtype="<i8").tobytes())
        content.update(self.image_id.astype("<i8").tobytes())
        content.update(self.category_id.astype("<i8").tobytes())
        content.update(self.bbox.astype("<f4").tobytes())
        content.update(np.where(np.isnan(self.area), -1, self.area).astype("<f4").tobytes())
        content.update(self.iscrowd.tobytes())
        content.update(self.ignore.tobytes())
        return content.hexdigest()


def load(path: Path, where: str, problems: Problems, lenient: bool = False) -> Instances:
    """Decode and check an instances file.

    Args:
        path: Path of the file.
        where: Name of the file in problems.
        problems: Receives invalid entries, which are left out, duplicate ids, and annotations with an
            unlisted image or category or an impossible box.
        lenient: Accept what pycocotools and other readers accept, see `coco_lenient`.

    Raises:
        DataError: The file is missing, is not JSON, or lacks images, annotations or categories.
    """
    document = _decode_document(path, where, problems, lenient)
    objects = document.annotations
    ids = np.array([image.id for image in document.images], dtype=np.int64)
    category_ids = np.array([category.id for category in document.categories], dtype=np.int64)
    image_id = np.array([entry.image_id for entry in objects])
    category_id = np.array([entry.category_id for entry in objects])
    instances = Instances(
        where=where,
        problems=problems,
        images=document.images,
        categories=document.categories,
        ids=ids,
        unique=find_rows(ids, ids) == np.arange(len(ids)),
        annotation_ids=[entry.id for entry in objects],
        image_id=image_id,
        category_id=category_id,
        bbox=np.array([entry.bbox for entry in objects], dtype=np.float64).reshape(-1, 4),
        area=np.array([entry.area for entry in objects], dtype=np.float64),  # None becomes NaN
        iscrowd=np.array([entry.iscrowd for entry in objects], dtype=np.bool_),
        ignore=np.array([entry.ignore for entry in objects], dtype=np.bool_),
        image_rows=find_rows(image_id, ids),
        category_rows=find_rows(category_id, category_ids),
        valid=np.ones(len(objects), dtype=np.bool_),
    )
    for row in np.flatnonzero(~instances.unique).tolist():
        problems.add("duplicate_id", where, f"images[{row}]: another image has the id {ids[row]}")
    for number, count in Counter(category_ids.tolist()).items():
        if count > 1:
            problems.add("duplicate_id", where, f"{count} categories have the id {number}")
    unlisted_image, unlisted_category = instances.image_rows < 0, instances.category_rows < 0
    reject, bbox = instances.reject, instances.bbox
    reject(unlisted_image, "unlisted_image", lambda i: f"image {image_id[i]:.0f} is unlisted")
    reject(out_of_range(bbox), "broken_annotation", lambda i: f"{bbox[i].tolist()} is not a box in pixels")
    reject(unlisted_category, "unknown_class", lambda i: f"category {category_id[i]:.0f} is unlisted")
    return instances


def find_rows(wanted: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T] first row of `ids` [N] with each wanted value; -1 if missing."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    low, span = int(ids.min()), int(ids.max()) - int(ids.min())
    if wanted.dtype.kind == "i" and span <= 8 * (len(wanted) + len(ids)):  # a table is four times as fast
        rows = np.full(span + 2, -1, dtype=np.int64)
        rows[ids[::-1] - low] = np.arange(len(ids))[::-1]
        offsets = wanted - low
        return rows[np.where((offsets >= 0) & (offsets <= span), offsets, span + 1)]
    order = np.argsort(ids, kind="stable")
    rows = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
    return np.where(ids[rows] == wanted, rows, -1)


def read_bytes(path: Path, content_type: str) -> bytes:
    """Read a file without its byte order mark.

    Raises:
        DataError: The file cannot be read or is empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read {content_type}: {error.strerror}; check the path") from None
    if not content or content.isspace():
        raise DataError(f"{path}: the file is empty, expected {content_type}")
    return content.removeprefix(codecs.BOM_UTF8)


def decode(path: Path, content: bytes, content_type: str, struct: type[T]) -> T:
    """Decode JSON into msgspec structs.

    Raises:
        DataError: The content is not JSON or does not match `struct`; names the location.
    """
    try:
        return msgspec.json.decode(content, type=struct)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not {content_type}: {_explain(content, error)}; fix the file") from None


def _explain(content: bytes, error: Exception) -> str:
    """Add line, column and text to an error that has only a byte position, such as that of a NaN."""
    position = re.search(r"\(byte (\d+)\)", str(error))
    if not position:
        return str(error)
    at = int(position[1])
    line, column = content.count(b"\n", 0, at) + 1, at - content.rfind(b"\n", 0, at)
    near = content[max(0, at - 60) : at + 10].decode(errors="replace")
    return f"{error}, line {line} column {column}, near {near!r}"


def _decode_document(path: Path, where: str, problems: Problems, lenient: bool) -> Document:
    """Decode a file; if an entry is invalid, decode entry by entry and report the invalid ones."""
    content_type = "a COCO instances file"
    content = read_bytes(path, content_type)
    try:
        return msgspec.json.decode(content, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        lists = _entries(path, content, content_type, lenient)

    def entries(key: str, struct: type[T]) -> list[T]:
        decoded = []
        for i, entry in enumerate(lists[key]):
            try:
                raw = isinstance(entry, msgspec.Raw)
                decoded.append(msgspec.json.decode(entry, type=struct) if raw else msgspec.convert(entry, struct))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                problems.add("broken_annotation", f"{where}: {key}[{i}]", str(error).replace("`", ""))
        return decoded

    return Document(
        images=entries("images", Image),
        annotations=entries("annotations", Annotation),
        categories=entries("categories", Category),
    )


def _entries(path: Path, content: bytes, content_type: str, lenient: bool) -> dict[str, Any]:
    """Undecoded entries of a file by key."""
    if not lenient:
        raw = decode(path, content, content_type, RawDocument)
        return {key: getattr(raw, key) for key in coco_lenient.KEYS}
    try:
        values = coco_lenient.parse(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not {content_type}: {error}; fix the file") from None
    for key in coco_lenient.KEYS:
        if not isinstance(values, dict) or not isinstance(values.get(key), list):
            raise DataError(f"{path}: not {content_type}: it has no list of {key}; fix the file")
    return dict(coco_lenient.normalize(values))


def read(
    dataset: CocoDataset, root: Path, digest: Digest, problems: Problems, raw: RawCorners | None = None
) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits of a dataset.

    Args:
        dataset: Entry of the dataset in `params.yaml`.
        root: Dataset folder.
        digest: Receives the content of every annotation file.
        problems: Receives the problems; objects and images with problems are left out.
        raw: Receives every box as written.

    Returns:
        Class names, and the index of each split (empty for a split that the dataset lacks). Sizes that a file
        does not give are 0, and boxes are fractions if `corners` is `relative`.

    Raises:
        DataError: A file is missing or is not JSON.
    """
    loaded: dict[str, list[tuple[CocoSplit, Instances]]] = {}
    for name in ("train", "val", "test"):
        loaded[name] = []
        for split in getattr(dataset, name):
            instances = load(root / split.annotations, split.annotations, problems, lenient=True)
            digest.entry(split.annotations, instances.content_hash())
            loaded[name].append((split, instances))
    categories = [one for _, part in loaded["train"] for one in sorted(part.categories, key=attrgetter("id"))]
    classes = dataset.classes or tuple(dict.fromkeys(category.name for category in categories))
    splits = {}
    for name, parts in loaded.items():
        packed = [_pack(instances, classes, split, root, dataset.corners, raw) for split, instances in parts]
        splits[name] = join(packed)
    return classes, splits


def _pack(
    instances: Instances, classes: tuple[str, ...], split: CocoSplit, root: Path, corners: str, raw: RawCorners | None
) -> Index:
    """Pack the valid annotations and usable images of a file, in its order."""
    labels = _labels(instances, classes)
    bbox = coco_boxes(corners, instances.bbox)
    files = spelled_files(root, split.images, [image.file_name for image in instances.images])
    if raw is not None:
        raw.add_all(files, instances.image_rows[instances.valid], instances.bbox[instances.valid])
    instances.reject(shortest_sides(bbox) <= 0, "zero_area", lambda i: f"width {bbox[i, 2]:g}, height {bbox[i, 3]:g}")
    rows = np.flatnonzero(instances.valid)
    rows = rows[np.argsort(instances.image_rows[rows], kind="stable")]
    boxes, areas, crowd = bbox[rows], instances.area[rows], instances.iscrowd[rows]
    areas = np.where(areas >= 0, areas, boxes[:, 2] * boxes[:, 3])
    boxes[:, 2:] += boxes[:, :2]
    images = instances.images
    counts = np.bincount(instances.image_rows[rows], minlength=len(images))
    usable = _usable_images(instances, split)
    index = Index(
        files=np.array([file.encode() for file in files], dtype=np.bytes_),
        ids=np.array([(image.text_id or str(image.id)).encode() for image in images], dtype=np.bytes_),
        sizes=np.array([_size(image) for image in images], dtype=np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes.astype(np.float32),
        labels=labels[rows],
        difficult=instances.ignore[rows] & ~crowd,
        crowd=crowd,
        areas=areas.astype(np.float32),
        category_ids=_category_ids(instances, classes),
    )
    return index if usable.all() else index.select(np.flatnonzero(usable))


def _size(image: Image) -> tuple[int, int]:
    """Height and width; 0 if one of them is missing."""
    return (int(image.height), int(image.width)) if image.height and image.width else (0, 0)


def _category_ids(instances: Instances, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """[C] id of each class in this file; a class that it does not list gets an id above all others."""
    id_of: dict[str, int] = {}
    for category in sorted(instances.categories, key=attrgetter("id")):
        id_of.setdefault(category.name, category.id)
    unused = max([0, *id_of.values()]) + 1
    missing = [name for name in classes if name not in id_of]
    id_of |= {name: number for number, name in enumerate(missing, unused)}
    return np.array([id_of[name] for name in classes], dtype=np.int64)


def _labels(instances: Instances, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """[T] labels by category name; annotations of categories that are not in `classes` are rejected."""
    names: Sequence[str] = [category.name for category in instances.categories]
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([*(label_of.get(name, -1) for name in names), -1], dtype=np.int64)
    labels = labels[instances.category_rows]  # row -1, an unlisted category, is the last: -1

    def describe(row: int) -> str:
        name = names[instances.category_rows[row]]
        return f"{name!r} is not a class of the dataset; {did_you_mean(name, classes)}"

    instances.reject(labels < 0, "unknown_class", describe)
    return labels


def _usable_images(instances: Instances, split: CocoSplit) -> NDArray[np.bool_]:
    """[N], False for images with a duplicate id or without a valid file name."""
    usable = instances.unique.copy()
    for row, image in enumerate(instances.images):
        if not image.file_name or not is_inside(image.file_name):
            detail = f"images[{row}]: file_name {image.file_name!r} is not inside the folder {split.images}"
            instances.problems.add("unsafe_name", instances.where, detail)
            usable[row] = False
    return usable
