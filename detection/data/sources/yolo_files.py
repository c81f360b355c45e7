"""Files of a YOLO dataset: class names and splits of `data.yaml`, images, and the label file of each.

Paths in these files are those of another machine more often than not. Each is looked up relative to `path:`, to the
file itself, and then without its first folders, in any letter case, but never outside the dataset folder.

Imports no numpy, so that the stage `check` takes half a second.
"""

import codecs
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from detection.data.sources.layout import is_inside, walk
from detection.data.sources.voc_files import name_key
from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES, data_root
from detection.params.datasets import YoloDataset

DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "notes.json", "labels/classes.txt", "images/classes.txt")
"""Files with a class name per line, and Label Studio's `notes.json`, of datasets without `data.yaml`."""
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SPLITS = ("train", "val", "test")
BOX_COLUMNS = 5
"""Columns of a box: class and four numbers."""
_YamlLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # every scalar is text: the class `01` stays `01`


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Class names and splits of a dataset as its own files give them."""

    file: str = ""
    """File with the splits, relative to the dataset folder; empty for none."""
    names_file: str = ""
    """File with the class names; empty for none."""
    names: dict[int, str] = field(default_factory=dict)
    """Class name of each index."""
    repeated: tuple[str, ...] = ()
    """Class names that several indices have."""
    count: int | None = None
    """Number of classes (`nc`); None if the file does not say."""
    keypoint_columns: int = 0
    """Columns after each box (`kpt_shape`)."""
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of `train`, `val` and `test` as written; only those that are there."""
    folders: tuple[str, ...] = ("",)
    """Folders that the paths are relative to, the likeliest first; relative to the dataset folder."""


def describe(dataset: YoloDataset, root: Path) -> Description:
    """Read class names and splits.

    Raises:
        DataError: `data` does not exist, cannot be read, or has invalid names.
    """
    file = _data_file(dataset, root)
    if not file:
        return _with_names(Description(), root, NAME_FILES)
    text = decode_text((root / file).read_bytes())
    if file.lower().endswith((".yaml", ".yml")):
        return _yaml_description(file, text, root)
    return _darknet_description(file, text, root)


def resolve(name: str, dataset: YoloDataset, root: Path) -> YoloDataset:
    """Return the entry with `train`, `val` and `test` filled in, as existing paths relative to `root`.

    Raises:
        DataError: A split does not exist; names it and where it is listed.
    """
    description = describe(dataset, root)
    splits: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        own: tuple[str, ...] | None = getattr(dataset, split)
        written = description.splits.get(split, ()) if own is None else own
        folders = description.folders if own is None else ("",)
        source = f"{split}: of {description.file}" if own is None else f"datasets.{name}.{split}"
        if split == "train" and own is None and not written:
            written, source = ("images" if (root / "images").is_dir() else "./",), f"datasets.{name}.train"
        splits[split] = tuple(_existing(name, split, one, root, folders, source) for one in written)
    return replace(dataset, **splits)  # type: ignore[arg-type]


def _existing(name: str, split: str, written: str, root: Path, folders: Sequence[str], source: str) -> str:
    found = locate(root, folders, written)
    if found is None:
        unset = "" if split == "train" else f", or set datasets.{name}.{split}: [] and use holdout_fraction"
        raise DataError(
            f"dataset {name}, {split}: {written!r} ({source}) is not in {root.resolve()}; correct the path{unset}"
        )
    return found


def check_present(name: str, dataset: YoloDataset) -> YoloDataset:
    """Check that the files and folders of a dataset exist; return its entry with all splits.

    Raises:
        DataError: A file or folder is missing, or there are no class names.
    """
    root = data_root() / dataset.path
    if not root.is_dir():
        raise DataError(
            f"dataset {name} is not at {root.resolve()}; put data.yaml, images and labels into {dataset.path}, "
            f"or set DATA_ROOT to the folder that contains {dataset.path}"
        )
    description, resolved = describe(dataset, root), resolve(name, dataset, root)
    if not description.names and not dataset.classes:
        where = f"{description.file} has no names" if description.file else "data.yaml and classes.txt are missing"
        raise DataError(f"dataset {name}: {where}; name the classes of index 0, 1, … at datasets.{name}.classes")
    if dataset.labels is not None and not (root / dataset.labels).is_dir():
        raise DataError(
            f"dataset {name}: the folder {dataset.labels} is not in {root.resolve()}; see datasets.{name}.labels"
        )
    return resolved


def locate(root: Path, folders: Iterable[str], written: str) -> str | None:
    """Return an existing path relative to `root` for a path as written in a file; None if there is none.

    Args:
        root: Dataset folder.
        folders: Folders relative to `root` that the path may be relative to, the likeliest first.
        written: Absolute or relative path, with slashes or backslashes.
    """
    text = _slashes(written)
    for folder in folders:
        found = _spelled(root, posixpath.normpath(f"{folder}/{text}".lstrip("/") or "."))
        if found is not None:
            return found
    parts = [part for part in text.split("/") if part not in ("", ".", "..") and not part.endswith(":")]
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((found for one in suffixes if (found := _spelled(root, one)) is not None), None)


def _slashes(written: str) -> str:
    return written.strip().strip("\"'").replace("\\", "/")


def _spelled(root: Path, path: str) -> str | None:
    """Return the path as the file system spells it; `./` for the root."""
    if not is_inside(path):
        return None
    if (root / path).exists():
        return "./" if path == "." else path
    folder = ""
    for part in path.split("/"):
        try:
            names = sorted(os.listdir(root / folder))
        except OSError:
            return None
        found = next((one for one in names if name_key(one) == name_key(part)), None)
        if found is None:
            return None
        folder = f"{folder}{found}/"
    return folder.rstrip("/")


def decode_text(content: bytes) -> str:
    """Decode a text file in UTF-8 or, with a byte order mark, UTF-16; undecodable bytes become U+FFFD."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")


def _data_file(dataset: YoloDataset, root: Path) -> str:
    if dataset.data is not None:
        if not is_inside(dataset.data) or not (root / dataset.data).is_file():
            raise DataError(f"{root / dataset.data} does not exist; correct `data`, a path relative to the dataset's")
        return dataset.data
    names = sorted(one.name for one in root.iterdir() if one.is_file())
    for wanted in DATA_FILES:
        if found := next((one for one in names if one.lower() == wanted), ""):
            return found
    others = [one for one in names if one.lower().endswith((".yaml", ".yml", ".data")) and not one.startswith(".")]
    if len(others) > 1:
        raise DataError(f"{root} has {' and '.join(others)}; name one of them with `data`")
    return others[0] if others else ""


def _yaml_description(file: str, text: str, root: Path) -> Description:
    try:
        values = yaml.load(text, _YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = str(getattr(error, "problem", error))
        raise DataError(f"{root / file}:{line} not valid YAML ({problem}); write paths without double quotes") from None
    if not isinstance(values, dict):
        raise DataError(f"{root / file} is not a mapping of names, train and val; set another file with `data`")
    nested = values.get("names", [])
    pairs = nested.items() if isinstance(nested, dict) else enumerate(nested if isinstance(nested, list) else [])
    names: dict[int, str] = {}
    for index, one in pairs:
        if not str(index).isdecimal() or not isinstance(one, str):
            raise DataError(f"{root / file}: names: {index!r}: {one!r} is not an index and a name; correct it")
        names[int(index)] = one
    count = values.get("nc", "")
    own = posixpath.dirname(file)
    base = locate(root, (own,), str(values["path"])) if values.get("path") else None
    folders = ([] if base is None else [base.removesuffix("./")]) + [own]
    description = Description(
        file=file,
        count=int(count) if isinstance(count, str) and count.isdecimal() else None,
        keypoint_columns=_keypoint_columns(values.get("kpt_shape")),
        splits={split: paths for split, keys in SPLIT_KEYS.items() if (paths := _paths(values, keys))},
        folders=tuple(folders),
    )
    if names:
        return replace(description, names_file=file, names=names, repeated=_repeated(names.values()))
    return _with_names(description, root, NAME_FILES)


def _paths(values: dict[Any, Any], keys: Iterable[str]) -> tuple[str, ...]:
    for key in keys:
        value = values.get(key)
        paths = value if isinstance(value, list) else [value]
        if texts := tuple(one for one in paths if isinstance(one, str) and one.strip() not in ("", "null", "~")):
            return texts
    return ()


def _keypoint_columns(shape: Any) -> int:
    sizes = [int(one) for one in shape if str(one).isdecimal()] if isinstance(shape, list) else []
    return sizes[0] * sizes[1] if len(sizes) == 2 else 0


def _darknet_description(file: str, text: str, root: Path) -> Description:
    """Read Darknet's `obj.data`: lines `key = value`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    values = {key.strip().lower(): value.strip() for key, _, value in pairs}
    folders = (posixpath.dirname(file),)
    count = values.get("classes", "")
    description = Description(
        file=file,
        count=int(count) if count.isdecimal() else None,
        splits={split: paths for split, keys in SPLIT_KEYS.items() if (paths := _paths(values, keys))},
        folders=folders,
    )
    listed = locate(root, folders, values["names"]) if values.get("names") else None
    return _with_names(description, root, ([listed] if listed else []) + [*NAME_FILES])


def _with_names(description: Description, root: Path, files: Iterable[str]) -> Description:
    """Add the names of the first file that exists."""
    found = next((one for one in files if (root / one).is_file()), None)
    if found is None:
        return description
    text = decode_text((root / found).read_bytes())
    if found.endswith(".json"):
        names = _label_studio_names(root / found, text)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    return replace(description, names_file=found, names=dict(enumerate(names)), repeated=_repeated(names))


def _label_studio_names(path: Path, text: str) -> list[str]:
    try:
        entries = json.loads(text)["categories"]
        return [str(one["name"]) for one in sorted(entries, key=lambda one: int(one["id"]))]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} has no categories with id and name; write the names into classes.txt") from None


def _repeated(names: Iterable[str]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return tuple(name for name, count in counts.items() if count > 1)


class YoloFiles:
    """Images and label files of a dataset folder, listed once."""

    def __init__(self, root: Path, labels: str | None = None) -> None:
        self._labels = None if labels is None else posixpath.normpath(labels)
        self._images: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._by_key: dict[str, str] = {}
        for name in walk(root):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                self._images[name] = name
                self._by_key.setdefault(name_key(name), name)
            elif suffix == ".txt":
                self._texts.setdefault(name_key(name), name)
        self._used: set[str] = set()
        self._label_folders: set[str] = set()

    def folder(self, folder: str) -> Iterator[str]:
        """Yield the images in a folder and its sub-folders."""
        prefix = "" if folder == "./" else f"{folder.rstrip('/')}/"
        return (name for name in self._images if name.startswith(prefix))

    def listed(self, line: str, folder: str) -> str | None:
        """Return the image in a line of a list that lies in `folder`; None if there is none."""
        text = _slashes(line)
        parts = [part for part in text.split("/") if part not in ("", ".", "..") and not part.endswith(":")]
        near = posixpath.normpath(f"{folder}/{text}".lstrip("/"))
        for candidate in (near, *("/".join(parts[start:]) for start in range(len(parts)))):
            if candidate in self._images:
                return candidate
            if found := self._by_key.get(name_key(candidate)):
                return found
        return None

    def label(self, image: str, folder: str) -> str | None:
        """Return the label file of an image of a split folder (empty for a list); None if it has none."""
        for candidate in self._candidates(os.path.splitext(image)[0], folder):
            if found := self._texts.get(name_key(f"{candidate}.txt")):
                self._used.add(found)
                if posixpath.dirname(found) != posixpath.dirname(image):
                    self._label_folders.add(posixpath.dirname(found))
                return found
        return None

    def _candidates(self, stem: str, folder: str) -> Iterator[str]:
        parts = stem.split("/")
        last = max((i for i, part in enumerate(parts[:-1]) if part.lower() == "images"), default=-1)
        inside = "/".join(parts[last + 1 :])
        prefix = folder.rstrip("/") + "/"
        relative = stem.removeprefix(prefix) if folder not in ("", "./") else stem
        if self._labels is not None:
            yield from (posixpath.normpath(f"{self._labels}/{one}") for one in (stem, inside, relative, parts[-1]))
            return
        if last >= 0:
            yield "/".join([*parts[:last], "labels", *parts[last + 1 :]])
        yield stem
        parent = posixpath.dirname(folder.rstrip("/"))
        yield f"{parent}/labels/{relative}".lstrip("/")
        yield f"labels/{stem}"

    def orphans(self) -> list[str]:
        """Return the label files, in folders of labels, that no image of any split has."""
        stems = {name_key(posixpath.basename(os.path.splitext(name)[0])) for name in self._images}
        return sorted(
            name
            for name in self._texts.values()
            if name not in self._used
            and posixpath.dirname(name) in self._label_folders
            and posixpath.basename(name).lower() != "classes.txt"
            and name_key(posixpath.basename(os.path.splitext(name)[0])) not in stems
        )
