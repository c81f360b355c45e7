"""The Pascal VOC reader: `Annotations/*.xml`, `ImageSets/Main/*.txt`, `JPEGImages/*`.

The one place where VOC's 1-based inclusive corners become 0-based half-open boxes:
`xmin - 1, ymin - 1, xmax, ymax`.
"""

import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from detection.data.index import Index, Record, pack
from detection.data.listing import Digest
from detection.errors import DataError
from detection.params.datasets import VocDataset
from detection.params.names import did_you_mean

log = logging.getLogger(__name__)
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(slots=True)
class Annotation:
    """What one XML file says; class names are not yet numbers."""

    path: Path
    id: str
    file: str
    """Picture, relative to the dataset's folder."""
    height: int
    width: int
    names: list[str] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    """0-based half-open corners."""
    difficult: list[bool] = field(default_factory=list)
    dropped: int = 0
    """Objects left out because their box has no area."""


def read(dataset: VocDataset, root: Path, digest: Digest) -> tuple[tuple[str, ...], dict[str, Index]]:
    """Read all splits.

    Args:
        dataset: The dataset's entry of `params.yaml`.
        root: Folder of the raw data.
        digest: Gets every annotation file and split list.

    Returns:
        Class names and the index of each split (`val` is empty where the dataset names none).

    Raises:
        DataError: A list, annotation or picture is missing or broken, or a class is unknown.
    """
    parts = {split: _read_lists(getattr(dataset, split), root, digest) for split in ("train", "val", "test")}
    _warn_dropped([annotation for part in parts.values() for annotation in part])
    classes = dataset.classes or tuple(sorted({name for part in parts["train"] for name in part.names}))
    return classes, {split: pack(_records(part, classes)) for split, part in parts.items()}


def _read_lists(specs: Sequence[str], root: Path, digest: Digest) -> list[Annotation]:
    """The annotations of several lists, joined; a picture named twice counts once."""
    found: dict[tuple[str, str], Annotation] = {}
    for spec in specs:
        path = list_path(root, spec)
        content = path.read_bytes()
        digest.text(path.relative_to(root).as_posix(), content)
        folder = path.parents[2]
        pictures = _pictures(folder)
        for line in content.decode(errors="replace").splitlines():
            image_id = line.split()[0] if line.strip() else ""  # lists of one class have a flag behind the id
            if image_id and (str(folder), image_id) not in found:
                found[str(folder), image_id] = _read_annotation(root, folder, image_id, pictures, digest)
    return list(found.values())


def list_path(root: Path, spec: str) -> Path:
    """The file of a split list `FOLDER/LIST` or `LIST`.

    Raises:
        DataError: It is not there, or leads out of `root`.
    """
    parent, _, name = spec.rpartition("/")
    path = _inside(root, root / parent / "ImageSets" / "Main" / f"{name}.txt", f"split list {spec!r}")
    if not path.is_file():
        lists = sorted(file.stem for file in path.parent.glob("*.txt"))
        hint = did_you_mean(name, lists) if lists else f"{root / parent} is no folder in VOC layout"
        raise DataError(f"the split list {spec!r} was looked for at {path} and is not there; {hint}")
    return path


def _pictures(folder: Path) -> dict[str, str]:
    """File names in `JPEGImages` by their stems."""
    images = folder / "JPEGImages"
    if not images.is_dir():
        raise DataError(f"{images} is not there; a VOC layout keeps its pictures in JPEGImages")
    return {os.path.splitext(name)[0]: name for name in sorted(os.listdir(images))}


def _read_annotation(
    root: Path, folder: Path, image_id: str, pictures: dict[str, str], digest: Digest
) -> Annotation:
    """One XML file and the picture beside it."""
    path = _inside(root, folder / "Annotations" / f"{image_id}.xml", image_id)
    try:
        content = path.read_bytes()
    except OSError:
        raise DataError(f"{path} is missing; add it, or take {image_id} out of the split list") from None
    digest.text(path.relative_to(root).as_posix(), content)
    tree = _parse(path, content)
    name = pictures.get(image_id) or (tree.findtext("filename") or "").strip()
    picture = _inside(root, folder / "JPEGImages" / name, f"{path}: filename {name}")
    if not name or not picture.is_file():
        raise DataError(
            f"{path}: there is no picture {image_id}.* in {folder / 'JPEGImages'}; "
            f"add it, or take {image_id} out of the split list"
        )
    height, width = _size(tree, picture)
    annotation = Annotation(path, image_id, picture.relative_to(root).as_posix(), height, width)
    for entry in tree.findall("object"):
        _read_object(entry, annotation)
    return annotation


def _parse(path: Path, content: bytes) -> ElementTree.Element:
    """Parse, after refusing what could make a small file expand without end."""
    if b"\0" in content or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(
            f"{path}: an annotation must be plain UTF-8 XML without DOCTYPE or ENTITY; remove them"
        )
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not readable as XML: {error}; mend the file") from None


def _size(tree: ElementTree.Element, picture: Path) -> tuple[int, int]:
    """Height and width as the annotation has them, else as the picture's header has them."""
    texts = [tree.findtext(f"size/{name}") or "" for name in ("height", "width")]
    if all(text.strip().isdecimal() and int(text) > 0 for text in texts):
        return int(texts[0]), int(texts[1])
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(picture) as opened:
            return opened.height, opened.width
    except (UnidentifiedImageError, OSError):
        raise DataError(f"{picture}: not readable as a picture; replace the file") from None


def _read_object(entry: ElementTree.Element, annotation: Annotation) -> None:
    """Add one `<object>`; only its own children count, as `<part>` holds boxes and names too."""
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{annotation.path}: an <object> has no <name>; add it")
    corners = [_number(entry.findtext(f"bndbox/{corner}")) for corner in CORNERS]
    if not all(math.isfinite(value) for value in corners):
        raise DataError(f"{annotation.path}: the <bndbox> of a {name} needs {', '.join(CORNERS)} as numbers")
    xmin, ymin, xmax, ymax = corners
    if xmax <= xmin or ymax <= ymin:  # a slip of the mouse; no annotator draws one pixel on purpose
        annotation.dropped += 1
        return
    annotation.names.append(name)
    annotation.boxes.append((xmin - 1, ymin - 1, xmax, ymax))
    annotation.difficult.append((entry.findtext("difficult") or "0").strip() == "1")


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _inside(root: Path, path: Path, what: str) -> Path:
    """`path`, or an error where `..` or an absolute name would leave the dataset's folder."""
    normal = Path(os.path.normpath(path))
    if not normal.is_relative_to(os.path.normpath(root)):
        raise DataError(f"{what}: leads out of the dataset's folder {root}; name what is inside it")
    return normal


def _warn_dropped(annotations: Iterable[Annotation]) -> None:
    dropped = {annotation.path: annotation.dropped for annotation in annotations if annotation.dropped}
    if dropped:
        names = ", ".join(path.name for path in list(dropped)[:3])
        log.warning("left out %d boxes without area, in %s", sum(dropped.values()), names)


def _records(annotations: Iterable[Annotation], classes: Sequence[str]) -> list[Record]:
    """Annotations with class names turned into labels."""
    numbers = {name: label for label, name in enumerate(classes)}
    records = []
    for item in annotations:
        for name in item.names:
            if name not in numbers:
                raise DataError(
                    f"{item.path}: class {name!r} is none of the dataset's; {did_you_mean(name, classes)} "
                    f"Mend the annotation, or add the name to the dataset's `classes`"
                )
        boxes = np.array(item.boxes, dtype=np.float32).reshape(-1, 4)
        records.append(
            Record(
                file=item.file,
                id=item.id,
                height=item.height,
                width=item.width,
                boxes=boxes,
                labels=np.array([numbers[name] for name in item.names], dtype=np.int64),
                difficult=np.array(item.difficult, dtype=np.bool_),
                crowd=np.zeros(len(boxes), dtype=np.bool_),
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            )
        )
    return records
