"""Ids of images and categories for COCO results on image files, so that `detection score` and other tools take them.

They are those of a COCO file (an instances file, or the list of a test set without annotations), where images are
found by their file name and classes by their name. Without such a file, images have the numbers that are their file
names, else 1, 2, …, and categories 1, 2, … in the order of the classes.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from detection.data.loading.index import MAX_ID_DIGITS
from detection.data.sources import coco
from detection.errors import DataError
from detection.text import listed

if TYPE_CHECKING:
    from detection.predictor import ImageDetections

log = logging.getLogger(__name__)
CONTENT_TYPE = "a COCO file with images and categories"


class _Document(msgspec.Struct):
    """COCO file without its annotations."""

    images: list[coco.Image]
    categories: list[coco.Category]


@dataclass(frozen=True, slots=True, eq=False)
class CocoIds:
    """Ids of COCO results."""

    images: Mapping[Path, int]
    """By image file."""
    sizes: Mapping[Path, tuple[int, int]]
    """Height and width in the COCO file, where it has them."""
    categories: Sequence[int | None]
    """Per class; None if the COCO file lacks the class."""

    @classmethod
    def of_files(cls, files: Sequence[Path], classes: Sequence[str]) -> "CocoIds":
        """Ids without a COCO file: numbers that are the files' names, else 1, 2, …."""
        stems = [file.stem for file in files]
        numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) <= MAX_ID_DIGITS]
        ids = numbers if len(set(numbers)) == len(files) else range(1, len(files) + 1)
        return cls(dict(zip(files, ids, strict=True)), {}, range(1, len(classes) + 1))

    @classmethod
    def of_ground_truth(cls, path: Path, files: Sequence[Path], classes: Sequence[str]) -> "CocoIds":
        """Ids of a COCO file. Classes that it lacks are named in a warning.

        Raises:
            DataError: The file cannot be read, or lacks one of the images or all classes.
        """
        document = coco.decode(path, coco.read_bytes(path, CONTENT_TYPE), CONTENT_TYPE, _Document)
        entries = _find_entries(document.images, files)
        if unlisted := [str(file) for file in files if file not in entries]:
            raise DataError(f"{path} does not list {len(unlisted)} of {len(files)} images: {listed(unlisted)}")
        id_of = {category.name: category.id for category in document.categories}
        if missing := [name for name in classes if name not in id_of]:
            if len(missing) == len(classes):
                raise DataError(f"{path} has none of the detector's classes ({listed(classes)})")
            log.warning("%s lacks classes, whose detections are left out: %s", path, listed(missing))
        sizes = {
            file: (round(one.height), round(one.width)) for file, one in entries.items() if one.height and one.width
        }
        ids = {file: one.id for file, one in entries.items()}
        return cls(ids, sizes, [id_of.get(name) for name in classes])

    def results(self, file: Path, image: "ImageDetections") -> list[dict[str, Any]]:
        """Entries of one image in a COCO results file, in full precision."""
        boxes = image.boxes.astype("float64")
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(image.labels.tolist(), boxes.tolist(), image.scores.tolist(), strict=True)
        return [
            {"image_id": self.images[file], "category_id": category, "bbox": box, "score": score}
            for label, box, score in columns
            if (category := self.categories[label]) is not None
        ]

    def describe(self, classes: Sequence[str]) -> dict[str, Any]:
        """Meaning of the ids: `{categories: [{id, name}], images: [{id, file_name}]}`."""
        categories = zip(self.categories, classes, strict=True)
        return {
            "categories": [{"id": number, "name": name} for number, name in categories if number is not None],
            "images": [{"id": number, "file_name": str(file)} for file, number in self.images.items()],
        }


def _find_entries(images: Sequence[coco.Image], files: Sequence[Path]) -> dict[Path, coco.Image]:
    """Entry of each file: the one that shares most of its path, and at least the file name."""
    by_name: dict[str, list[coco.Image]] = defaultdict(list)
    for entry in images:
        by_name[PurePosixPath(entry.file_name.replace("\\", "/")).name].append(entry)
    entries: dict[Path, coco.Image] = {}
    for file in files:
        parts = os.path.abspath(file).split(os.sep)
        ranked = sorted(by_name[file.name], key=lambda entry: _shared(parts, entry.file_name), reverse=True)
        if len(ranked) == 1 or (ranked and _shared(parts, ranked[0].file_name) > _shared(parts, ranked[1].file_name)):
            entries[file] = ranked[0]
    return entries


def _shared(parts: Sequence[str], name: str) -> int:
    """Number of equal parts at the end of two paths."""
    pairs = zip(reversed(parts), reversed(name.replace("\\", "/").split("/")), strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count
