"""Write a dataset's splits as COCO, Pascal VOC or YOLO.

Image files keep their content and get one flat folder of unique names. What a format cannot express is counted and
named, so that nothing is lost silently.
"""

import json
import os
import posixpath
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import msgspec
import numpy as np

from detection.data.loading.index import Index, Record
from detection.data.loading.prepared import to_coco
from detection.data.sources.dataset import RawDataset
from detection.data.sources.voc_files import name_key
from detection.errors import DataError
from detection.files import data_root
from detection.ops import boxes as box_ops


@dataclass(frozen=True, slots=True)
class Written:
    """Result of a conversion."""

    entry: str
    """Entry for `datasets` in params.yaml, in YAML's flow style, that reads the written files."""
    losses: tuple[str, ...]
    """Properties that the format cannot express, each with a count or a reason."""


def write(raw: RawDataset, target_format: str, folder: Path, link: bool = False) -> Written:
    """Write all splits that have images.

    Args:
        raw: The dataset, read and checked.
        target_format: Key of `WRITERS`.
        folder: Empty or new folder.
        link: Make symbolic links to the images instead of copies.

    Raises:
        DataError: The folder is not empty, or an image cannot be copied.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder; choose a new one")
    splits = {split: index for split, index in raw.splits.items() if len(index)}
    names = flat_names([file.decode() for index in splits.values() for file in index.files.tolist()])
    for split, index in splits.items():
        images = folder / IMAGE_FOLDERS[target_format].format(split=split)
        images.mkdir(parents=True, exist_ok=True)
        for file in map(bytes.decode, index.files.tolist()):
            _place(raw.root / file, images / names[file], link)
    root = folder.resolve()
    inside = root.is_relative_to(data_root().resolve())
    path = root.relative_to(data_root().resolve()).as_posix() if inside else root.as_posix()
    keys, losses = WRITERS[target_format](splits, raw.classes, names, folder)
    if raw.orientation.line:
        keys = [*keys, f"exif: {'upright' if raw.orientation.upright else 'stored'}"]
    entry = ", ".join([f"format: {target_format}", f"path: {_quoted(path)}", *keys])
    return Written(f"{{{entry}}}", tuple(losses))


IMAGE_FOLDERS = {"coco": "images", "voc": "JPEGImages", "yolo": "images/{split}"}
Splits = dict[str, Index]
Writer = Callable[[Splits, Sequence[str], dict[str, str], Path], tuple[list[str], list[str]]]
"""Function from splits, class names, new name of each image and folder to keys of the entry and losses."""


def flat_names(files: Sequence[str]) -> dict[str, str]:
    """Return a file name for each image whose stem no other one has, in any letter case: its own where possible."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for file in dict.fromkeys(files):
        for name in _candidates(file):
            key = name_key(os.path.splitext(name)[0])
            if key not in taken:
                taken.add(key)
                names[file] = name
                break
    return names


def _candidates(file: str) -> Iterator[str]:
    stem, suffix = os.path.splitext(file)
    yield posixpath.basename(file)
    flat = stem.replace("/", "_")
    yield f"{flat}{suffix}"
    number = 2
    while True:
        yield f"{flat}_{number}{suffix}"
        number += 1


def _place(source: Path, target: Path, link: bool) -> None:
    try:
        if link:
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _listed(classes: Sequence[str]) -> str:
    return f"classes: [{', '.join(map(_quoted, classes))}]"


def _counted(splits: Splits, flag: str) -> int:
    return sum(int(getattr(index, flag).sum()) for index in splits.values())


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _write_coco(splits: Splits, classes: Sequence[str], names: dict[str, str], folder: Path) -> tuple[Any, Any]:
    keys = []
    for split, index in splits.items():
        document = to_coco(index, tuple(classes))
        for image in document["images"]:
            image["file_name"] = names[image["file_name"]]
        for annotation, crowd in zip(document["annotations"], index.crowd.tolist(), strict=True):
            annotation["iscrowd"] = int(crowd)  # a difficult object has `ignore`, which the reader understands
        (folder / f"{split}.json").write_bytes(msgspec.json.encode(document))
        keys.append(f"{split}: [{{images: images, annotations: {split}.json}}]")
    ids = next(iter(splits.values())).category_ids
    keys += [_listed(classes)] if len(ids) and (np.diff(ids) <= 0).any() else []
    losses = [] if all(_numbered(index) for index in splits.values()) else ["image ids that are no numbers"]
    difficult = _counted(splits, "difficult")
    losses += [f"{difficult:,} difficult flags, written as `ignore`, which pycocotools skips"] if difficult else []
    return keys, losses


def _numbered(index: Index) -> bool:
    return [name.decode() for name in index.ids.tolist()] == [str(number) for number in index.image_ids().tolist()]


def _lost_columns(splits: Splits, names: dict[str, str]) -> list[str]:
    """Properties that VOC and YOLO cannot express: ids other than the file's name, areas other than the box's."""
    ids = areas = 0
    for index in splits.values():
        stems = [os.path.splitext(names[file.decode()])[0].encode() for file in index.files.tolist()]
        ids += sum(one != stem for one, stem in zip(index.ids.tolist(), stems, strict=True))
        areas += int((~np.isclose(index.areas, box_ops.areas(index.boxes), rtol=1e-4)).sum())
    losses = [f"{ids:,} image ids"] if ids else []
    losses += ["category ids"] if any(len(index.category_ids) for index in splits.values()) else []
    return losses + ([f"{_plural(areas, 'area')} of segmentations"] if areas else [])


def _write_voc(splits: Splits, classes: Sequence[str], names: dict[str, str], folder: Path) -> tuple[Any, Any]:
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    thin = 0
    for split, index in splits.items():
        stems = []
        for record in map(index.__getitem__, range(len(index))):
            name = names[record.file]
            stem = os.path.splitext(name)[0]
            (folder / "Annotations" / f"{stem}.xml").write_text(_voc_xml(record, name, classes), encoding="utf-8")
            stems.append(stem)
            thin += int((record.boxes[:, 2:] - record.boxes[:, :2] <= 1).any(axis=1).sum())
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{one}\n" for one in stems), encoding="utf-8")
    crowds = _counted(splits, "crowd")
    losses = _lost_columns(splits, names)
    losses += [f"the mark of {_plural(crowds, 'crowd')}, written as difficult"] if crowds else []
    losses += [f"{_plural(thin, 'object')} of at most one pixel, which has no area in VOC"] if thin else []
    return [f"{split}: [{split}]" for split in splits] + [_listed(classes)], losses


def _voc_xml(record: Record, name: str, classes: Sequence[str]) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{escape(name)}</filename>",
        f"  <size><width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>",
    ]
    flags = record.difficult | record.crowd
    for (x1, y1, x2, y2), label, flag in zip(record.boxes.tolist(), record.labels, flags, strict=True):
        corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # from pixel 1, the last one included
        box = "".join(f"<{key}>{_number(value)}</{key}>" for key, value in corners.items())
        difficult = f"<difficult>{int(flag)}</difficult>"
        lines.append(f"  <object><name>{escape(classes[label])}</name>{difficult}<bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _write_yolo(splits: Splits, classes: Sequence[str], names: dict[str, str], folder: Path) -> tuple[Any, Any]:
    for split, index in splits.items():
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for record in map(index.__getitem__, range(len(index))):
            stem = os.path.splitext(names[record.file])[0]
            (labels / f"{stem}.txt").write_text(_yolo_lines(record), encoding="utf-8")
    lines = ["path: .", *(f"{split}: images/{split}" for split in splits), f"nc: {len(classes)}", "names:"]
    lines += [f"  {label}: {_quoted(name)}" for label, name in enumerate(classes)]
    (folder / "data.yaml").write_text("\n".join([*lines, ""]), encoding="utf-8")
    losses = _lost_columns(splits, names)
    left_out = sum(int((index.crowd | index.difficult).sum()) for index in splits.values())
    losses += [f"{_plural(left_out, 'object')} marked crowd or difficult, left out"] if left_out else []
    return [], losses


def _yolo_lines(record: Record) -> str:
    """Lines of a label file; crowds and difficult objects are left out, since YOLO has no marks for them."""
    keep = ~(record.crowd | record.difficult)
    boxes = record.boxes[keep].astype(np.float64) / np.array([record.width, record.height] * 2)
    rows = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    lines = zip(record.labels[keep].tolist(), rows.tolist(), strict=True)
    return "".join(f"{label} {' '.join(map(repr, row))}\n" for label, row in lines)


WRITERS: dict[str, Writer] = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}
"""Writer of each format."""
