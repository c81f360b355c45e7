"""VOC's devkit: annotations of an image set, and one file of detections a class.

Corners in both are 1-based and inclusive; here they become `xmin - 1, ymin - 1` and inclusive sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from detection.errors import DataError
from detection.evaluation.external import (
    FARTHEST,
    ExternalData,
    drop_unknown,
    known_sizes,
    log,
    read_bytes,
    refuse,
    too_far,
)
from detection.evaluation.protocol.overlaps import GroundTruth, Predictions
from detection.text import did_you_mean

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(slots=True)
class _Objects:
    """What the annotations say."""

    images: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    sizes: list[tuple[float, float]] = field(default_factory=list)
    """Height and width of each picture; 0 where an annotation does not say."""


def read(
    devkit: Path, year: str, image_set: str, detections: Path, *, skip_unknown: bool = False
) -> ExternalData:
    """Read an image set's objects, and `comp4_det_<image_set>_<class>.txt` of every class.

    A class is what the annotations of the image set name. A class without a detection has an empty file.

    Args:
        devkit: The folder `VOCdevkit`.
        year: Of its folder `VOC<year>`.
        image_set: Name of a list in `ImageSets/Main`.
        detections: Folder of the files: picture, score, `xmin ymin xmax ymax` on each line.
        skip_unknown: Leave out detections on other pictures and files of other classes; and of the classes
            those that have no file.

    Raises:
        DataError: A file is missing, empty or broken, or a line cannot be right.
    """
    folder = devkit / f"VOC{year}"
    pictures = _image_set(folder, image_set)
    objects = _Objects()
    for number, picture in enumerate(pictures):
        _read_annotation(folder / "Annotations" / f"{picture}.xml", number, objects)
    if not objects.names:
        raise DataError(
            f"{folder}: no picture of the image set {image_set!r} has an object; name another one"
        )
    classes = _classes(detections, f"comp4_det_{image_set}_", sorted(set(objects.names)), skip_unknown)
    place = {picture: number for number, picture in enumerate(pictures)}
    parts = [
        _read_class(detections / f"comp4_det_{image_set}_{name}.txt", label, place, skip_unknown)
        for label, name in enumerate(classes)
    ]
    return ExternalData(
        truth=_truth(objects, classes),
        found=Predictions(
            images=np.concatenate([part.images for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
        ),
        classes=tuple(classes),
        pictures=tuple(pictures),
        sizes=known_sizes(objects.sizes),
    )


def _image_set(folder: Path, name: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        lists = sorted(file.stem for file in path.parent.glob("*.txt"))
        hint = did_you_mean(name, lists) if lists else f"{folder} is no folder in VOC layout"
        raise DataError(f"the image set {name!r} was looked for at {path} and is not there; {hint}")
    lines = read_bytes(path, "the names of pictures").decode(errors="replace").splitlines()
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _read_annotation(path: Path, number: int, objects: _Objects) -> None:
    content = read_bytes(path, "the annotation of a picture")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # could make a small file expand without end
        raise DataError(f"{path}: an annotation must be plain XML without DOCTYPE or ENTITY; remove them")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not readable as XML: {error}; mend the file") from None
    height, width = (_number(tree.findtext(f"size/{side}") or "0") for side in ("height", "width"))
    objects.sizes.append((height, width))
    for entry in tree.findall("object"):
        name = (entry.findtext("name") or "").strip()
        try:
            corners = [float(entry.findtext(f"bndbox/{corner}") or "nan") for corner in CORNERS]
        except ValueError:
            corners = [np.nan]
        if not name or not np.isfinite(corners).all():
            raise DataError(
                f"{path}: an <object> needs a <name> and a <bndbox> of four numbers; mend the file"
            )
        left, top, right, bottom = corners
        if right <= left - 1 or bottom <= top - 1 or max(map(abs, corners)) > FARTHEST:
            raise DataError(f"{path}: the corners {corners} of an object make no box; mend the file")
        objects.images.append(number)
        objects.names.append(name)
        objects.corners.append(corners)
        objects.difficult.append((entry.findtext("difficult") or "0").strip() == "1")


def _classes(folder: Path, prefix: str, annotated: list[str], skip_unknown: bool) -> list[str]:
    """The classes to score: those that are annotated and, where a person said so, have a file."""
    given = {path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.txt")}
    if not given:
        raise DataError(f"{folder} holds no {prefix}<class>.txt; name the folder of the detections")
    missing, strange = [name for name in annotated if name not in given], sorted(given - set(annotated))
    if skip_unknown:
        for names, what in (
            (missing, "classes without a file"),
            (strange, "files of classes without objects"),
        ):
            if names:
                log.warning("%s: left out %s: %s", folder, what, ", ".join(names))
        annotated = [name for name in annotated if name in given]
    if skip_unknown and annotated:
        return annotated
    if strange:
        path = folder / f"{prefix}{strange[0]}.txt"
        raise DataError(f"{path}: no object is a {strange[0]!r}; {did_you_mean(strange[0], annotated)}")
    if missing:
        raise DataError(
            f"{folder / (prefix + missing[0])}.txt is not there; write it (an empty file where nothing was "
            f"found), or score the {len(annotated) - len(missing)} classes that have one with --skip-unknown"
        )
    return annotated


def _truth(objects: _Objects, classes: Sequence[str]) -> GroundTruth:
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in objects.names], dtype=np.int64)
    boxes = _xywh(np.array(objects.corners, dtype=np.float64).reshape(-1, 4))
    truth = GroundTruth(
        images=np.array(objects.images, dtype=np.int64),
        labels=labels,
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        ignored=np.array(objects.difficult, dtype=np.bool_),
    )
    return truth.take(np.flatnonzero(labels >= 0))


def _read_class(path: Path, label: int, place: dict[str, int], skip_unknown: bool) -> Predictions:
    content = read_bytes(path, "a class's detections", may_be_empty=True)
    lines = [line.split() for line in content.decode(errors="replace").splitlines()]
    rows = [number for number, line in enumerate(lines) if line]
    for row in rows:
        if len(lines[row]) != 6:
            raise DataError(f"{path}:{row + 1}: a line is `picture score xmin ymin xmax ymax`; mend it")
    numbers = np.array(
        [[_number(text) for text in lines[row][1:]] for row in rows], dtype=np.float64
    ).reshape(-1, 5)
    at = f"{path}:%d"
    bad: NDArray[np.bool_] = np.logical_not(np.isfinite(numbers).all(axis=1))
    refuse(bad, lambda i: f"{at % (rows[i] + 1)}: score and corners must be finite numbers")
    boxes = _xywh(numbers[:, 1:])
    inverted = (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
    refuse(inverted, lambda i: f"{at % (rows[i] + 1)}: an inverted box; corners are xmin ymin xmax ymax")
    refuse(too_far(boxes), lambda i: f"{at % (rows[i] + 1)}: a box beyond {FARTHEST:.0e} pixels")
    images = np.array([place.get(lines[row][0], -1) for row in rows], dtype=np.int64)
    kept = drop_unknown(
        images < 0,
        skip_unknown,
        path,
        lambda i: f"{at % (rows[i] + 1)}: picture {lines[rows[i]][0]!r} is not in the image set",
    )
    found = Predictions(images=images, labels=np.full(len(rows), label), boxes=boxes, scores=numbers[:, 0])
    return found.take(np.flatnonzero(kept))


def _xywh(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    low = corners[:, :2] - 1
    return np.concatenate([low, corners[:, 2:] - low], axis=1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
