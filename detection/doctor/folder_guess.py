"""Guess of a folder's format, and the entry of params.yaml that reads it.

A guess is read before it is shown: what it prints are the images and objects that training would get.
"""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from detection.data.sources import coco, yolo_files
from detection.data.sources.annotation_xml import parse
from detection.data.sources.checks import Problems
from detection.data.sources.dataset import examine
from detection.data.sources.layout import ANNOTATION_FOLDERS, IMAGE_FOLDERS, walk
from detection.data.sources.voc_files import Names
from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES, data_root
from detection.params import schema
from detection.params.datasets import FORMATS, Dataset, YoloDataset
from detection.params.stages import Checks
from detection.text import listed

SPLIT_WORDS = {
    "train": ("train", "trainval", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
HOLDOUT = 0.1
FEW_IMAGES, HOLDOUT_OF_FEW = 200, 0.2
"""Number of images below which a larger fraction is held out."""
SAMPLED_FILES = 20
"""Files that are opened to recognize a format."""
EXPORTS = {
    ".csv": "if it is VIA's CSV or project file, export COCO in VIA (Annotation, Export Annotations)",
    ".json": "LabelMe, VIA, CreateML and Label Studio JSON are not read: export COCO, VOC or YOLO in the tool",
    ".xml": "CVAT's own annotations.xml is not read: export COCO 1.0, PASCAL VOC or YOLO in CVAT",
    ".tfrecord": "TFRecord is not read: export COCO, VOC or YOLO",
}
"""Advice for files that no reader takes, by suffix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Format of a folder."""

    source_format: str
    """Key of `FORMATS`."""
    reason: str
    """Files that tell the format."""
    has_test: bool
    """True if the folder has a test split."""
    keys: dict[str, str] = field(default_factory=dict)
    """Keys of the entry besides `format` and `path`, as YAML."""

    def entry(self, path: str) -> str:
        """Entry of params.yaml in flow style."""
        keys = {"format": self.source_format, "path": path, **self.keys}
        return "{" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}"


def suggest(folder: Path, taken: Iterable[str]) -> str:
    """Say what a folder looks like, and print the lines for params.yaml.

    Args:
        folder: Existing folder.
        taken: Names that params.yaml has already.

    Raises:
        DataError: No format is recognized; names what the folder has.
    """
    root, base = Path(os.path.abspath(folder)), Path(os.path.abspath(data_root()))
    if not root.is_relative_to(base):  # else a link below DATA_ROOT keeps its name
        root, base = root.resolve(), base.resolve()
    path = root.relative_to(base).as_posix() if root.is_relative_to(base) else root.as_posix()
    name = _free_name(root.name, taken)
    files = walk(root)
    guess = next((one for one in (find(root, files) for find in FINDERS) if one is not None), None)
    if guess is None:
        raise DataError(f"{folder} is not recognized as VOC, COCO or YOLO: {_contents(files)}")
    guess = _with_holdout(guess, files)
    entry = guess.entry(path if re.fullmatch(r"[\w./-]+", path) else yaml_text(path))
    lines = [f"{folder} looks like {guess.source_format.upper()} ({guess.reason})", *_read(name, entry)]
    lines += ["", "put these two lines below `datasets:` and below `budgets:` in params.yaml:", ""]
    lines += [f"  {name}: {entry}", f"  {name}: {{image_size: 320, batch_size: 8, epochs: 30}}", ""]
    if not root.is_relative_to(base):
        lines.append(f"(`ln -s {root} {base / root.name}` and `path: {root.name}` keep this machine's paths out of it)")
    return "\n".join([*lines, f"then: detection doctor {name}"])


def _read(name: str, entry: str) -> list[str]:
    """Lines about the images and objects that an entry reads."""
    try:
        raw = examine(name, build_entry(name, entry), Checks())
    except DataError as error:
        return [f"  it cannot be read as it is: {error}"]
    lines = [
        f"  {split:<6}{len(index):>7,} images {len(index.boxes):>9,} objects"
        for split, index in raw.splits.items()
        if len(index)
    ]
    counts = ", ".join(f"{key} {count:,}" for key, count in raw.problems.counts().items())
    return [
        *lines,
        f"  {len(raw.classes)} classes: {listed(raw.classes)}",
        *([f"  problems: {counts}"] if counts else []),
    ]


def build_entry(name: str, entry: str) -> Dataset:
    """Dataset of an entry in flow style."""
    values = schema.read(entry)
    dataset: Dataset = schema.validate(FORMATS[values["format"]], values, f"datasets.{name}", "params.yaml")
    return dataset


def _free_name(name: str, taken: Iterable[str]) -> str:
    clean, used = re.sub(r"[^\w-]+", "_", name).strip("_") or "mine", set(taken)
    return next(one for one in (clean, *(f"{clean}_{n}" for n in range(2, 1000))) if one not in used)


def yaml_text(text: str) -> str:
    """A double-quoted YAML scalar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _with_holdout(guess: Guess, files: list[str]) -> Guess:
    """Add `holdout_fraction` if the guess has no test."""
    if guess.has_test:
        return guess
    few = sum(_is_image(name) for name in files) < FEW_IMAGES
    return replace(guess, keys={**guess.keys, "holdout_fraction": str(HOLDOUT_OF_FEW if few else HOLDOUT)})


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _contents(files: list[str]) -> str:
    suffixes = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in files)
    counts = listed([f"{count} {suffix}" for suffix, count in suffixes.most_common()])
    advice = next((text for suffix, text in EXPORTS.items() if suffix in suffixes), "see docs/datasets.md")
    return f"it has {counts or 'no files'}; {advice}"


def split_of(path: str) -> str | None:
    """Split that a path names, by its last part that names one."""
    for part in reversed(path.split("/")):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in SPLIT_WORDS.items():
            if any(word in names for word in words):
                return split
    return None


def _by_split(paths: Iterable[str]) -> dict[str, list[str]]:
    """Paths of each split; those that name none belong to train."""
    splits: dict[str, list[str]] = {}
    for path in paths:
        splits.setdefault(split_of(path) or "train", []).append(path)
    if "train" not in splits:  # one folder with another name
        splits["train"] = splits.pop(next(iter(splits)))
    return {split: splits[split] for split in SPLIT_WORDS if split in splits}


def _yaml_lists(splits: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {split: f"[{', '.join(_plain(one) for one in paths)}]" for split, paths in splits.items()}


def _plain(text: str) -> str:
    return text if re.fullmatch(r"[\w.][\w./-]*", text) and not text.isdecimal() else yaml_text(text)


def _described_yolo(root: Path, files: list[str]) -> Guess | None:
    """YOLO with data.yaml or obj.data."""
    try:
        description = yolo_files.describe(YoloDataset(format="yolo", path="."), root)
    except DataError:
        return None
    if not description.file or not (description.names and description.splits):
        return None
    keys: dict[str, str] = {}
    for split in ("val", "test"):
        written = description.splits.get(split, ())
        if any(yolo_files.locate(root, description.folders, one) is None for one in written):
            keys[split] = "[]"  # listed, but not part of the folder
    has_test = "test" in description.splits and "test" not in keys
    return Guess(source_format="yolo", reason=description.file, has_test=has_test, keys=keys)


def _coco(root: Path, files: list[str]) -> Guess | None:
    """COCO: JSON files with images, annotations and categories."""
    jsons = [name for name in files if name.lower().endswith(".json")]
    instances = [name for name in jsons if "instances" in posixpath.basename(name).lower()]
    names = Names(name for name in files if _is_image(name))
    parts: dict[str, str] = {}
    used: dict[str, bool] = {}
    for name in (instances or jsons)[:SAMPLED_FILES]:
        try:
            loaded = coco.load(root / name, name, Problems(Checks()), lenient=True)
        except DataError:
            continue
        folder = _image_folder(name, [image.file_name for image in loaded.images], names)
        if folder is not None:
            parts[name] = folder
            rows = {*loaded.category_rows.tolist()}
            for row, category in enumerate(loaded.categories):
                used[category.name] = used.get(category.name, False) or row in rows
    if not parts:
        return None
    keys = {
        split: "[" + ", ".join(f"{{images: {_plain(parts[one])}, annotations: {_plain(one)}}}" for one in paths) + "]"
        for split, paths in _by_split(parts).items()
    }
    if not all(used.values()) and any(used.values()):
        keys["classes"] = f"[{', '.join(yaml_text(name) for name, is_used in used.items() if is_used)}]"
    return Guess(source_format="coco", reason=listed(list(parts), 3), has_test="test" in keys, keys=keys)


def _image_folder(file: str, images: list[str], names: Names) -> str | None:
    """Folder that the images of a file are in; None if none of them exists."""
    own = posixpath.dirname(file)
    stem = posixpath.splitext(posixpath.basename(file))[0].removeprefix("instances_")
    parents = [own, *(f"{posixpath.dirname(own)}/{one}".lstrip("/") for one in ("images", stem, f"images/{stem}", ""))]
    sample = images[:SAMPLED_FILES]
    for folder in (*parents, *sorted({posixpath.dirname(name) for name in names.names})):
        candidates = [posixpath.normpath(f"{folder}/{one}".replace("\\", "/").lstrip("/")) for one in sample]
        if candidates and sum(one in names.names for one in candidates) * 2 > len(candidates):
            return folder.rstrip("/") or "."
    return None


def _voc(root: Path, files: list[str]) -> Guess | None:
    """Pascal VOC: XML files with objects."""
    annotations = [name for name in files if name.lower().endswith(".xml") and _is_annotation(root / name)]
    if not annotations:
        return None
    lists = [name for name in files if re.search(r"(^|/)ImageSets/Main/[^/]+\.txt$", name)]
    if lists:
        stems = {name.removesuffix(".txt") for name in lists}
        lists = [name for name in lists if not _is_of_one_class(name.removesuffix(".txt"), stems)]
        specs = [name.replace("ImageSets/Main/", "").removesuffix(".txt") for name in lists]
        specs = [spec for spec in specs if split_of(spec)] or specs
        splits = _by_split(specs)
        both = [spec for spec in specs if not spec.endswith("trainval")]
        splits = _by_split(both) if "val" in splits and len(both) < len(specs) else splits
        return Guess(source_format="voc", reason=listed(lists, 3), has_test="test" in splits, keys=_yaml_lists(splits))
    folders = dict.fromkeys(_without_usual(posixpath.dirname(name)) for name in annotations)
    if any(split_of(folder) for folder in folders) and "" not in folders:
        splits = _by_split(f"{folder}/" for folder in folders)
    else:
        splits = {"train": ["./"]}
    reason = f"{len(annotations):,} XML files, such as {annotations[0]}"
    return Guess(source_format="voc", reason=reason, has_test="test" in splits, keys=_yaml_lists(splits))


def _is_of_one_class(name: str, lists: set[str]) -> bool:
    """Return True for a list such as `cat_train` beside a list `train`."""
    folder, _, stem = name.rpartition("/")
    return any(f"{folder}/{stem[i + 1 :]}" in lists for i, letter in enumerate(stem) if letter == "_")


def _is_annotation(path: Path) -> bool:
    try:
        parse(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _without_usual(folder: str) -> str:
    """Folder without `Annotations`, `images` or the like at its end."""
    parts = folder.split("/")
    while parts and parts[-1].lower() in (*ANNOTATION_FOLDERS, *IMAGE_FOLDERS):
        parts.pop()
    return "/".join(parts)


def _plain_yolo(root: Path, files: list[str]) -> Guess | None:
    """YOLO without data.yaml: text files of numbers with the names of images."""
    dataset = YoloDataset(format="yolo", path=".")
    try:
        description = yolo_files.describe(dataset, root)
    except DataError:
        return None
    yolo = yolo_files.YoloFiles(root)
    images = [name for name in files if _is_image(name)]
    labels = {name: label for name in images if (label := yolo.label(name, ""))}
    sample = [label for label in labels.values() if (root / label).stat().st_size][:SAMPLED_FILES]
    if not sample or not all(map(_has_boxes, (root / label for label in sample))):
        return None
    folders = [folder for folder in dict.fromkeys(map(posixpath.dirname, images)) if folder]
    splits: dict[str, list[str]] = {}
    if any(split_of(folder) for folder in folders) and all(posixpath.dirname(name) for name in images):
        splits = _by_split(folders)
    keys = _yaml_lists(splits)
    if not description.names:
        keys["classes"] = f"[{', '.join(f'class_{n}' for n in range(_classes_of(root, labels.values())))}]"
    reason = f"{len(labels):,} images with a label file, such as {sample[0]}"
    return Guess(source_format="yolo", reason=reason, has_test="test" in splits, keys=keys)


def _has_boxes(path: Path) -> bool:
    lines = yolo_files.decode_text(path.read_bytes()).split("\n")
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return all(len(row) >= yolo_files.BOX_COLUMNS and all(map(_is_number, row)) for row in rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _classes_of(root: Path, labels: Iterable[str]) -> int:
    def indices() -> Iterator[int]:
        for label in labels:
            for line in yolo_files.decode_text((root / label).read_bytes()).splitlines():
                first = line.split()[:1]
                if first and first[0].isdecimal():
                    yield int(first[0])

    return max(indices(), default=0) + 1


FINDERS = (_described_yolo, _coco, _voc, _plain_yolo)
"""Functions that recognize a format, the surest first."""
