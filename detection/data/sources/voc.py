"""The Pascal VOC reader: XML annotations beside pictures, in the layouts of `layout`.

The one place where VOC's 1-based inclusive corners become 0-based half-open boxes:
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

from detection.data.index import Index
from detection.data.sources.digest import Digest
from detection.data.sources.problems import Problems
from detection.data.sources.voc_layout import VocFolder, is_inside, split_spec
from detection.errors import DataError
from detection.params.datasets import VocDataset
from detection.text import did_you_mean

FARTHEST = 1e9
"""A coordinate beyond this many pixels is no coordinate; NaN is not below it either."""

FLAGS = re.compile(r"(\s+-?\d+)+$")


@dataclass(slots=True)
class Rows:
    """One split as it is read: columns that grow, and become arrays at once at the end."""

    annotations: list[str] = field(default_factory=list)
    """XML file of each picture, relative to the dataset's folder."""
    files: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("i"))
    """Height and width, flat; 0 where the annotation has none."""
    counts: "array[int]" = field(default_factory=lambda: array("q"))
    """Objects of each picture."""
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    """0-based half-open corners, flat."""
    names: list[str] = field(default_factory=list)
    """Class of each object."""
    difficult: list[bool] = field(default_factory=list)


def read(
    dataset: VocDataset, root: Path, digest: Digest, faults: Problems
) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits.

    Args:
        dataset: The dataset's entry of `params.yaml`.
        root: Folder of the raw data.
        digest: Gets every annotation file and split list.
        faults: Gets what is wrong; the object or picture concerned is left out.

    Returns:
        Class names and the index of each split (empty where the dataset names none); a size is 0 where its
        annotation has none.

    Raises:
        DataError: A split list is missing.
    """
    parts = {split: _read_split(getattr(dataset, split), root, digest, faults) for split in SPLITS}
    classes = dataset.classes or tuple(sorted(set(parts["train"].names)))
    return classes, {split: _packed(rows, classes, faults) for split, rows in parts.items()}


SPLITS = ("train", "val", "test")


def _read_split(specs: Sequence[str], root: Path, digest: Digest, faults: Problems) -> Rows:
    """The annotations of several lists or folders, joined; a picture named by two of them counts once."""
    rows = Rows()
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        folder, name = split_spec(root, spec)
        pictures = _Pictures(folder)
        where = folder.annotations
        listed = pictures.ids(faults) if name is None else _listed(folder, name, digest, faults)
        for image_id in listed:
            if (folder.name, image_id) in seen:
                continue
            seen.add((folder.name, image_id))
            path = f"{where}{image_id}.xml"
            tree = _read_tree(root, path, digest, faults)
            if tree is not None and (file := pictures.find(image_id, tree, path, faults)):
                _read_annotation(tree, path, rows, faults)
                rows.files.append(file)
                rows.ids.append(image_id)
    return rows


def _listed(folder: VocFolder, name: str, digest: Digest, faults: Problems) -> Iterator[str]:
    """The ids of a split list."""
    path = folder.list_file(name)
    where = path.relative_to(folder.root).as_posix()
    try:
        content = path.read_bytes()
    except OSError:
        lists = sorted(file.stem for file in path.parent.glob("*.txt"))
        hint = did_you_mean(name, lists) if lists else f"{folder.path} has no lists in ImageSets/Main"
        raise DataError(
            f"the split list {name!r} was looked for at {path} and is not there; {hint}"
        ) from None
    digest.text(where, content)
    seen = set()
    for line in content.decode("utf-8-sig", errors="replace").splitlines():
        if not line.strip():
            continue
        image_id = _id_on(line.strip(), folder)
        if not is_inside(image_id):
            faults.add("unsafe_name", where, f"{image_id!r} leads out of the dataset's folder")
        elif image_id in seen:
            faults.add("duplicate_id", where, f"{image_id} is listed twice")
        else:
            seen.add(image_id)
            yield image_id


def _id_on(line: str, folder: VocFolder) -> str:
    """The id on a line, which may have spaces. Lists of one class have a flag behind it: it is left away."""
    bare = FLAGS.sub("", line)
    if bare != line and (folder.root / folder.annotations / f"{line}.xml").is_file():
        return line
    return bare


class _Pictures:
    """The pictures of a folder by their stems, which are the ids."""

    def __init__(self, folder: VocFolder) -> None:
        self._folder = folder
        self._inside = folder.pictures
        self._files: dict[str, str] = {}
        self._others: dict[str, str] = {}
        for stem, name in folder.find_pictures():
            (self._others if stem in self._files else self._files)[stem] = name

    def ids(self, faults: Problems) -> list[str]:
        """The ids of a folder without lists: its annotations; a picture without one is a fault."""
        ids = self._folder.find_annotations()
        for stem in sorted(self._files.keys() - set(ids)):
            faults.add("missing_annotation", self._inside + self._files[stem], "has no XML file")
        return ids

    def find(self, image_id: str, tree: ElementTree.Element, path: str, faults: Problems) -> str | None:
        """The picture of an id relative to the dataset's folder: by its stem, else as `<filename>` says."""
        if (name := self._files.get(image_id)) and image_id not in self._others:
            return self._inside + name
        name = name or (tree.findtext("filename") or "").strip()
        if image_id in self._others:
            faults.add("duplicate_id", path, f"{name} and {self._others[image_id]} share the id {image_id}")
        if not name:
            faults.add("missing_image", path, f"there is no picture {image_id}.* in {self._inside or './'}")
        elif not is_inside(name):
            faults.add("unsafe_name", path, f"filename {name!r} leads out of the dataset's folder")
        else:
            return self._inside + name
        return None


def _read_tree(root: Path, path: str, digest: Digest, faults: Problems) -> ElementTree.Element | None:
    """One XML file, after refusing what could make a small file expand without end."""
    try:
        with open(f"{root}/{path}", "rb", buffering=0) as file:
            content = file.read()
    except OSError:
        faults.add("missing_annotation", path, "is not there; add it, or take it out of the split list")
        return None
    digest.text(path, content)
    if b"\0" in content or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        faults.add("broken_annotation", path, "must be plain UTF-8 XML without DOCTYPE or ENTITY")
        return None
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        faults.add("broken_annotation", path, f"not readable as XML: {error}")
        return None


def _read_annotation(tree: ElementTree.Element, path: str, rows: Rows, faults: Problems) -> None:
    """Add one picture's size and objects. Loops over children: `find` costs as much as parsing did."""
    size: dict[str, str | None] = {}
    before = len(rows.names)
    for child in tree:
        if child.tag == "object":
            _read_object(child, path, rows, faults)
        elif child.tag == "size":
            size = {entry.tag: entry.text for entry in child}
    high, wide = (size.get("height") or "").strip(), (size.get("width") or "").strip()
    height, width = int(high) if high.isdecimal() else 0, int(wide) if wide.isdecimal() else 0
    rows.sizes.extend((height, width) if 0 < height < FARTHEST and 0 < width < FARTHEST else (0, 0))
    rows.counts.append(len(rows.names) - before)
    rows.annotations.append(path)


def _read_object(entry: ElementTree.Element, path: str, rows: Rows, faults: Problems) -> None:
    """Add one `<object>`; only its own children count, as `<part>` holds boxes and names too."""
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
        faults.add("broken_annotation", path, "an <object> has no <name>")
        return
    try:
        xmin, ymin = float(corners["xmin"] or ""), float(corners["ymin"] or "")
        xmax, ymax = float(corners["xmax"] or ""), float(corners["ymax"] or "")
    except (KeyError, ValueError):
        xmin = ymin = xmax = ymax = float("nan")
    if not abs(xmin) + abs(ymin) + abs(xmax) + abs(ymax) < FARTHEST:
        detail = f"the <bndbox> of a {name} needs xmin, ymin, xmax, ymax as numbers"
        faults.add("broken_annotation", path, detail)
    elif xmax <= xmin or ymax <= ymin:  # a slip of the mouse; no annotator draws one pixel on purpose
        corner_text = f"xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
        faults.add("zero_area", path, f"{name} with {corner_text}")
    else:
        rows.boxes.extend((xmin - 1, ymin - 1, xmax, ymax))
        rows.names.append(name)
        rows.difficult.append(flag == "1")


def _packed(rows: Rows, classes: Sequence[str], faults: Problems) -> Index:
    """Columns turned into arrays, class names into labels."""
    numbers = {name: label for label, name in enumerate(classes)}
    labels = np.array([numbers.get(name, -1) for name in rows.names], dtype=np.int64)
    boxes = np.array(rows.boxes, dtype=np.float32).reshape(-1, 4)
    index = Index(
        files=_encoded(rows.files),
        ids=_encoded(rows.ids),
        sizes=np.array(rows.sizes, dtype=np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(np.array(rows.counts, dtype=np.int64))]).astype(np.int64),
        boxes=boxes,
        labels=labels,
        difficult=np.array(rows.difficult, dtype=np.bool_),
        crowd=np.zeros(len(boxes), dtype=np.bool_),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )
    unknown = np.flatnonzero(labels < 0)
    for row, number in zip(index.image_rows()[unknown].tolist(), unknown.tolist(), strict=True):
        name = rows.names[number]
        detail = f"{name!r} is none of the dataset's classes; {did_you_mean(name, classes)}"
        faults.add("unknown_class", rows.annotations[row], detail)
    return index.keep_boxes(labels >= 0) if len(unknown) else index


def _encoded(names: list[str]) -> NDArray[np.bytes_]:
    return np.array([name.encode() for name in names], dtype=np.bytes_)
