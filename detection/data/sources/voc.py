"""Pascal VOC reader: XML annotations beside images.

VOC's 1-based inclusive corners become 0-based half-open boxes here and nowhere else:
`xmin - 1, ymin - 1, xmax, ymax`.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.data.sources.checks import MAX_COORDINATE, Problems
from detection.data.sources.digest import Digest
from detection.data.sources.layout import VocFolder, is_inside, split_spec
from detection.errors import DataError
from detection.params.datasets import VocDataset
from detection.text import did_you_mean

LIST_FLAGS = re.compile(r"(\s+-?\d+)+$")
"""Flags after the ids in the split lists of one class."""


@dataclass(slots=True, kw_only=True)
class VocAnnotations:
    """Annotations of one split as growing columns."""

    digest: Digest
    problems: Problems
    one_pixel_boxes: bool = False
    """Accept `xmax == xmin`, one pixel wide by the devkit; in training data it is an annotation error."""
    paths: list[str] = field(default_factory=list)
    """XML file of each image, relative to the dataset folder."""
    ids: list[str] = field(default_factory=list)
    """Id of each image."""
    files: list[str] = field(default_factory=list)
    """Each image, relative to the dataset folder; empty if images are not searched."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of each image; 0 if the annotation has none."""
    counts: list[int] = field(default_factory=list)
    """Number of objects of each image."""
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    """`x1, y1, x2, y2` of each object, 0-based and half-open, flat, float64."""
    names: list[str] = field(default_factory=list)
    """Class of each object."""
    difficult: list[bool] = field(default_factory=list)
    """Flag of each object."""

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the position of each object's class in `classes`; -1 for other classes."""
        label_of = {name: label for label, name in enumerate(classes)}
        return np.array([label_of.get(name, -1) for name in self.names], dtype=np.int64)

    def read(self, root: Path, path: str, image_id: str, images: "_Images | None" = None) -> None:
        """Append one XML file, `path` relative to `root`; its image is not searched if `images` is None."""
        tree = self._parse(root, path)
        if tree is None:
            return
        file = images.find(image_id, tree, path) if images else ""
        if file is None:
            return
        size: dict[str, str] = {}
        before = len(self.names)
        for child in tree:  # `find` would cost as much as parsing
            if child.tag == "object":
                self._append_object(child, path)
            elif child.tag == "size":
                size = {entry.tag: (entry.text or "").strip() for entry in child}
        texts = size.get("height", ""), size.get("width", "")
        height, width = (int(text) if text.isdecimal() else 0 for text in texts)
        known = 0 < height < MAX_COORDINATE and 0 < width < MAX_COORDINATE
        self.sizes.append((height, width) if known else (0, 0))
        self.counts.append(len(self.names) - before)
        self.paths.append(path)
        self.files.append(file)
        self.ids.append(image_id)

    def _parse(self, root: Path, path: str) -> ElementTree.Element | None:
        """Parse an XML file. Refuse entities, which can make a small file expand without limit."""
        try:
            with open(f"{root}/{path}", "rb", buffering=0) as file:
                content = file.read()
        except OSError:
            detail = "does not exist; add it, or remove it from the split list"
            self.problems.add("missing_annotation", path, detail)
            return None
        self.digest.file(path, content)
        if b"\0" in content or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            self.problems.add("broken_annotation", path, "must be UTF-8 XML without DOCTYPE or ENTITY")
            return None
        try:
            return ElementTree.fromstring(content)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            self.problems.add("broken_annotation", path, f"is not valid XML: {error}")
            return None

    def _append_object(self, entry: ElementTree.Element, path: str) -> None:
        """Append an `<object>`. Only direct children count: `<part>` has boxes and names too."""
        name, flag = "", "0"
        corners: dict[str, str | None] = {}
        for child in entry:
            tag = child.tag
            if tag == "name":
                name = name or (child.text or "").strip()
            elif tag == "bndbox":
                corners = {corner.tag: corner.text for corner in child}
            elif tag == "difficult":
                flag = (child.text or "").strip()
        if not name:
            self.problems.add("broken_annotation", path, "an <object> has no <name>")
            return
        try:
            xmin, ymin = float(corners["xmin"] or ""), float(corners["ymin"] or "")
            xmax, ymax = float(corners["xmax"] or ""), float(corners["ymax"] or "")
        except (KeyError, ValueError):
            xmin = ymin = xmax = ymax = float("nan")
        slack = 1 if self.one_pixel_boxes else 0
        if not abs(xmin) + abs(ymin) + abs(xmax) + abs(ymax) < MAX_COORDINATE:
            detail = f"the <bndbox> of a {name} needs xmin, ymin, xmax, ymax as numbers"
            self.problems.add("broken_annotation", path, detail)
        elif xmax <= xmin - slack or ymax <= ymin - slack:
            detail = f"{name} with xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
            self.problems.add("zero_area", path, detail)
        else:
            self.boxes.extend((xmin - 1, ymin - 1, xmax, ymax))
            self.names.append(name)
            self.difficult.append(flag.lower() in ("1", "true"))


def read(
    dataset: VocDataset, root: Path, digest: Digest, problems: Problems
) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits of a dataset.

    Args:
        dataset: Entry of the dataset in `params.yaml`.
        root: Dataset folder.
        digest: Receives every annotation file and split list.
        problems: Receives the problems; objects and images with problems are left out.

    Returns:
        Class names, and the index of each split (empty for a split that the dataset lacks). Sizes that an
        annotation does not give are 0.

    Raises:
        DataError: A split list is missing.
    """
    splits = {
        split: _read_split(getattr(dataset, split), root, VocAnnotations(digest=digest, problems=problems))
        for split in ("train", "val", "test")
    }
    classes = dataset.classes or tuple(sorted(set(splits["train"].names)))
    return classes, {split: _pack(annotations, classes) for split, annotations in splits.items()}


def _read_split(specs: Sequence[str], root: Path, annotations: VocAnnotations) -> VocAnnotations:
    """Read and join several lists or folders; an image named by two of them is read once."""
    digest, problems = annotations.digest, annotations.problems
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        folder, name = split_spec(root, spec)
        images, where = _Images(folder, problems), folder.annotations
        for image_id in images.ids() if name is None else listed_ids(folder, name, digest, problems):
            if (folder.name, image_id) not in seen:
                seen.add((folder.name, image_id))
                annotations.read(root, f"{where}{image_id}.xml", image_id, images)
    return annotations


def listed_ids(folder: VocFolder, name: str, digest: Digest, problems: Problems) -> Iterator[str]:
    """Yield the image ids of a split list.

    Raises:
        DataError: The list is missing.
    """
    path = folder.list_file(name)
    where = path.relative_to(folder.root).as_posix()
    try:
        content = path.read_bytes()
    except OSError:
        lists = sorted(file.stem for file in path.parent.glob("*.txt"))
        hint = did_you_mean(name, lists) if lists else f"{folder.path} has no lists in ImageSets/Main"
        raise DataError(f"split list {name!r} is not at {path}; {hint}") from None
    digest.file(where, content)
    seen = set()
    for line in content.decode("utf-8-sig", errors="replace").splitlines():
        if not line.strip():
            continue
        image_id = _parse_id(line.strip(), folder)
        if not is_inside(image_id):
            problems.add("unsafe_name", where, f"{image_id!r} is outside the dataset folder")
        elif image_id in seen:
            problems.add("duplicate_id", where, f"{image_id} is listed twice")
        else:
            seen.add(image_id)
            yield image_id


def _parse_id(line: str, folder: VocFolder) -> str:
    """Return the id in a line of a list, which may contain spaces, without the flags after it."""
    image_id = LIST_FLAGS.sub("", line)
    if image_id != line and (folder.root / folder.annotations / f"{line}.xml").is_file():
        return line
    return image_id


class _Images:
    """Images of a folder by their stems, which are the ids."""

    def __init__(self, folder: VocFolder, problems: Problems) -> None:
        self._folder, self._path, self._problems = folder, folder.images, problems
        self._files: dict[str, list[str]] = {}
        for stem, name in folder.find_images():
            self._files.setdefault(stem, []).append(name)

    def ids(self) -> list[str]:
        """Return the ids of a folder without lists: its annotations. Report images without annotation."""
        ids = self._folder.find_annotations()
        for stem in sorted(self._files.keys() - set(ids)):
            self._problems.add("missing_annotation", self._path + self._files[stem][0], "has no XML file")
        return ids

    def find(self, image_id: str, tree: ElementTree.Element, path: str) -> str | None:
        """Return the image of an id, relative to the dataset folder: by its stem, else by `<filename>`."""
        names = self._files.get(image_id) or [(tree.findtext("filename") or "").strip()]
        if len(names) > 1:
            self._problems.add("duplicate_id", path, f"{' and '.join(names)} have the same id {image_id}")
        if not names[0]:
            self._problems.add("missing_image", path, f"no image {image_id}.* in {self._path or './'}")
        elif not is_inside(names[0]):
            self._problems.add("unsafe_name", path, f"filename {names[0]!r} is outside the dataset folder")
        else:
            return self._path + names[0]
        return None


def _pack(annotations: VocAnnotations, classes: Sequence[str]) -> Index:
    """Pack the columns; report and drop objects of unknown classes."""
    labels = annotations.labels(classes)
    boxes = np.array(annotations.boxes, dtype=np.float32).reshape(-1, 4)
    index = Index(
        files=np.array([file.encode() for file in annotations.files], dtype=np.bytes_),
        ids=np.array([image_id.encode() for image_id in annotations.ids], dtype=np.bytes_),
        sizes=np.array(annotations.sizes, dtype=np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *annotations.counts], dtype=np.int64),
        boxes=boxes,
        labels=labels,
        difficult=np.array(annotations.difficult, dtype=np.bool_),
        crowd=np.zeros(len(boxes), dtype=np.bool_),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )
    unknown = np.flatnonzero(labels < 0)
    for row, owner in zip(unknown.tolist(), index.image_rows()[unknown].tolist(), strict=True):
        name = annotations.names[row]
        detail = f"{name!r} is not a class of the dataset; {did_you_mean(name, classes)}"
        annotations.problems.add("unknown_class", annotations.paths[owner], detail)
    return index.keep_boxes(labels >= 0) if len(unknown) else index
