"""Pascal VOC reader: XML annotations beside images.

VOC's 1-based inclusive corners become 0-based half-open boxes here and nowhere else:
`xmin - 1, ymin - 1, xmax, ymax`.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.data.sources.annotation_xml import XmlAnnotation, XmlObject, parse
from detection.data.sources.checks import MAX_COORDINATE, Problems
from detection.data.sources.corners import RawCorners, voc_box
from detection.data.sources.digest import Digest
from detection.data.sources.layout import VocFolder, is_inside, split_spec
from detection.data.sources.voc_files import LIST_FLAGS, VocFiles
from detection.errors import DataError
from detection.params.datasets import VocDataset
from detection.text import did_you_mean


@dataclass(slots=True, kw_only=True)
class VocAnnotations:
    """Annotations of one split as growing columns."""

    digest: Digest
    problems: Problems
    one_pixel_boxes: bool = False
    """Accept `xmax == xmin`, one pixel wide by the devkit; in training data it is an annotation error."""
    corners: str = "1-based"
    """Convention of the corners, see `VocDataset.corners`."""
    raw: RawCorners | None = None
    """Receives every box as written."""
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

    def read(self, root: Path, path: str, image_id: str, files: VocFiles | None = None) -> None:
        """Append one XML file, `path` relative to `root`; its image is not searched if `files` is None."""
        annotation = self._parse(root, path)
        if annotation is None:
            return
        file = self._image(image_id, annotation.filename, path, files) if files else ""
        if file is None:
            return
        before = len(self.names)
        for entry in annotation.objects:
            self._append_object(entry, path, file)
        height, width = annotation.height, annotation.width
        known = 0 < height < MAX_COORDINATE and 0 < width < MAX_COORDINATE
        self._append_image(path, image_id, file, (height, width) if known else (0, 0), len(self.names) - before)

    def read_background(self, path: str, image_id: str, file: str) -> None:
        """Append an image without annotation as one without objects."""
        self._append_image(path, image_id, file, (0, 0), 0)

    def _append_image(self, path: str, image_id: str, file: str, size: tuple[int, int], count: int) -> None:
        self.sizes.append(size)
        self.counts.append(count)
        self.paths.append(path)
        self.files.append(file)
        self.ids.append(image_id)

    def _parse(self, root: Path, path: str) -> XmlAnnotation | None:
        try:
            with open(f"{root}/{path}", "rb", buffering=0) as file:
                content = file.read()
        except OSError:
            detail = "does not exist; add it, or remove it from the split list"
            self.problems.add("missing_annotation", path, detail)
            return None
        self.digest.file(path, content)
        try:
            return parse(content)
        except ValueError as error:
            self.problems.add("broken_annotation", path, str(error))
            return None

    def _image(self, image_id: str, filename: str, path: str, files: VocFiles) -> str | None:
        """Return the image of an id, relative to the dataset folder; None if there is none."""
        names, unsafe = files.image(image_id, filename)
        if len(names) > 1:
            listed = " and ".join(name.rpartition("/")[2] for name in names)
            self.problems.add("duplicate_id", path, f"{listed} have the same id {image_id}")
        if names:
            return names[0]
        if unsafe:
            self.problems.add("unsafe_name", path, f"filename {unsafe!r} is outside the dataset folder")
        else:
            self.problems.add("missing_image", path, f"no image {image_id}.* in {files.images or './'}")
        return None

    def _append_object(self, entry: XmlObject, path: str, file: str) -> None:
        if not entry.name:
            self.problems.add("broken_annotation", path, "an <object> has no <name>")
            return
        name = entry.name
        try:
            xmin, ymin, xmax, ymax = map(float, entry.corners or ())
        except ValueError:
            xmin = ymin = xmax = ymax = float("nan")
        slack = 1 if self.one_pixel_boxes else 0
        if not abs(xmin) + abs(ymin) + abs(xmax) + abs(ymax) < MAX_COORDINATE:
            detail = f"the <bndbox> of a {name} needs xmin, ymin, xmax, ymax as numbers"
            self.problems.add("broken_annotation", path, detail)
            return
        if self.raw is not None:
            self.raw.add(file, (xmin, ymin, xmax, ymax))
        box = voc_box(self.corners, xmin, ymin, xmax, ymax)
        one = 1 if self.corners in ("1-based", "swapped") else 0
        if box[2] - one <= box[0] - slack or box[3] - one <= box[1] - slack:
            detail = f"{name} with xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
            self.problems.add("zero_area", path, detail)
        else:
            self.boxes.extend(box)
            self.names.append(name)
            self.difficult.append(entry.difficult)


def read(
    dataset: VocDataset, root: Path, digest: Digest, problems: Problems, raw: RawCorners | None = None
) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits of a dataset.

    Args:
        dataset: Entry of the dataset in `params.yaml`.
        root: Dataset folder.
        digest: Receives every annotation file and split list.
        problems: Receives the problems; objects and images with problems are left out.
        raw: Receives every box as written.

    Returns:
        Class names, and the index of each split (empty for a split that the dataset lacks). Sizes that an
        annotation does not give are 0, and boxes are fractions if `corners` is `relative`.

    Raises:
        DataError: A split list is missing.
    """
    splits = {}
    for split in ("train", "val", "test"):
        annotations = VocAnnotations(digest=digest, problems=problems, corners=dataset.corners, raw=raw)
        splits[split] = _read_split(dataset, getattr(dataset, split), root, annotations)
    classes = dataset.classes or tuple(sorted(set(splits["train"].names)))
    return classes, {split: _pack(annotations, classes) for split, annotations in splits.items()}


def _read_split(dataset: VocDataset, specs: Sequence[str], root: Path, annotations: VocAnnotations) -> VocAnnotations:
    """Read and join several lists or folders; an image named by two of them is read once."""
    digest, problems = annotations.digest, annotations.problems
    background = problems.action("missing_annotation") == "background"
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        folder, name = split_spec(root, spec, dataset.images, dataset.annotations)
        files = VocFiles(folder)
        ids = files.ids() if name is None else listed_ids(folder, name, digest, problems, files.parse_line)
        for image_id in ids:
            if (folder.name, image_id) in seen:
                continue
            seen.add((folder.name, image_id))
            path = files.annotation(image_id)
            images, _ = ([], "") if files.has_annotation(image_id) else files.image(image_id)
            if images and background:
                problems.add("missing_annotation", images[0], "has no XML file")
                annotations.read_background(path, image_id, images[0])
            else:
                annotations.read(root, path, image_id, files)
        for stem, file in files.unused() if name is None else ():
            problems.add("missing_annotation", file, "has no XML file")
            if background:
                annotations.read_background(f"{files.annotations}{stem}.xml", stem, file)
    return annotations


def listed_ids(
    folder: VocFolder, name: str, digest: Digest, problems: Problems, parse_line: Callable[[str], str] | None = None
) -> Iterator[str]:
    """Yield the image ids of a split list.

    Args:
        folder: Folder of the list.
        name: Name of the list.
        digest: Receives the list.
        problems: Receives names outside the folder and duplicates.
        parse_line: Function from a line to an id; None removes flags after the id.

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
        image_id = parse_line(line.strip()) if parse_line else LIST_FLAGS.sub("", line.strip())
        if not is_inside(image_id):
            problems.add("unsafe_name", where, f"{image_id!r} is outside the dataset folder")
        elif image_id in seen:
            problems.add("duplicate_id", where, f"{image_id} is listed twice")
        else:
            seen.add(image_id)
            yield image_id


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
