"""The COCO reader: instances JSON beside a folder of pictures.

Typed structs let msgspec skip what is not asked for: polygons, which are most of the file, are never built.
Category ids, which have gaps, become labels 0 … K-1 in the order of the ids.
"""

import logging
import math
from pathlib import Path

import msgspec
import numpy as np

from detection.data.index import Index, Record, pack
from detection.data.listing import Digest
from detection.errors import DataError
from detection.params.datasets import CocoDataset, CocoSplit

log = logging.getLogger(__name__)


class Image(msgspec.Struct, gc=False):
    """One picture."""

    id: int
    file_name: str
    height: int
    width: int


class Annotation(msgspec.Struct, gc=False):
    """One object."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    """`x, y, width, height` in pixels, 0-based."""
    area: float | None = None
    iscrowd: int = 0
    ignore: int = 0


class Category(msgspec.Struct):
    """One class."""

    id: int
    name: str


class Instances(msgspec.Struct):
    """An instances file."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def read(dataset: CocoDataset, root: Path, digest: Digest) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits.

    Args:
        dataset: The dataset's entry of `params.yaml`.
        root: Folder of the raw data.
        digest: Gets every annotation file.

    Returns:
        Class names in the order of their ids, and the index of each split (`val` is empty where the dataset
        names none).

    Raises:
        DataError: A file is missing or broken, or the splits do not share their categories.
    """
    categories: dict[int, str] = {}
    splits = {}
    for name in ("train", "val", "test"):
        records: list[Record] = []
        for split in getattr(dataset, name):
            path = annotations_path(root, split)
            instances = _load(path, split.annotations, digest)
            own = {category.id: category.name for category in instances.categories}
            if categories and own != categories:
                raise DataError(f"{path}: its categories are not those of the training split; use one list")
            categories = own
            records += _records(instances, split, path, sorted(own))
        splits[name] = pack(records)
    return tuple(categories[number] for number in sorted(categories)), splits


def annotations_path(root: Path, split: CocoSplit) -> Path:
    """The instances file of a split.

    Raises:
        DataError: It is not there.
    """
    path = root / split.annotations
    if not path.is_file():
        raise DataError(f"the annotations {split.annotations} were looked for at {path} and are not there")
    return path


def _load(path: Path, name: str, digest: Digest) -> Instances:
    content = path.read_bytes()
    digest.text(name, content)
    try:
        return msgspec.json.decode(content, type=Instances)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a COCO instances file: {error}; mend the file") from None


def _records(instances: Instances, split: CocoSplit, path: Path, ids: list[int]) -> list[Record]:
    """Pictures in the order of the file, those without annotations too."""
    labels = {number: label for label, number in enumerate(ids)}
    by_image: dict[int, list[Annotation]] = {image.id: [] for image in instances.images}
    if len(by_image) < len(instances.images):
        raise DataError(f"{path}: two pictures have the same id; give each its own")
    dropped: list[int] = []
    for annotation in instances.annotations:
        if annotation.image_id not in by_image:
            raise DataError(f"{path}: an annotation names picture {annotation.image_id}, which is not listed")
        if annotation.category_id not in labels:
            raise DataError(
                f"{path}: an annotation names category {annotation.category_id}, which is not listed"
            )
        if not all(math.isfinite(value) for value in annotation.bbox):
            raise DataError(f"{path}: a box of picture {annotation.image_id} is not made of finite numbers")
        if annotation.bbox[2] > 0 and annotation.bbox[3] > 0:
            by_image[annotation.image_id].append(annotation)
        else:
            dropped.append(annotation.image_id)
    if dropped:
        names = ", ".join(str(number) for number in dropped[:3])
        log.warning("%s: left out %d boxes without area, in pictures %s", path.name, len(dropped), names)
    return [_record(image, by_image[image.id], labels, split, path) for image in instances.images]


def _record(
    image: Image, annotations: list[Annotation], labels: dict[int, int], split: CocoSplit, path: Path
) -> Record:
    if ".." in image.file_name.split("/") or image.file_name.startswith("/"):
        raise DataError(
            f"{path}: {image.file_name!r} leads out of the folder {split.images}; name what is in it"
        )
    boxes = np.array([annotation.bbox for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    areas = [a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in annotations]
    boxes[:, 2:] += boxes[:, :2]
    return Record(
        file=f"{split.images}/{image.file_name}",
        id=str(image.id),
        height=image.height,
        width=image.width,
        boxes=boxes.astype(np.float32),
        labels=np.array([labels[a.category_id] for a in annotations], dtype=np.int64),
        difficult=np.array([a.ignore == 1 and not a.iscrowd for a in annotations], dtype=np.bool_),
        crowd=np.array([a.iscrowd == 1 for a in annotations], dtype=np.bool_),
        areas=np.array(areas, dtype=np.float32),
    )
