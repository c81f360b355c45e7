"""Location of a dataset's files: the folders of a VOC tree, and a check that all files exist.

Imports no numpy, so that the stage `check` takes half a second.
"""

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES, data_root
from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset, YoloDataset
from detection.text import did_you_mean

SUSPICIOUS_NAME = re.compile(r"\.\.|^[/\\]|^.:|\0")
"""Quick test for names that may point outside their folder; very few names match."""
MAX_SUGGESTIONS = 50
"""Largest number of files in a folder for which a missing name gets a spelling suggestion."""

SHAPES_VERSION = 2
"""Increment when a change alters images: they go to another folder."""
SHAPES_MINIMA = {"image_size": 32, "train": 1, "val": 0, "test": 0, "seed": 0}
"""Parameters that decide the images of a shapes dataset, with their minimum."""
ANNOTATION_FOLDERS = ("annotations", "annots", "annotation", "xmls", "xml")
IMAGE_FOLDERS = ("jpegimages", "images", "imgs", "image", "img")
"""Usual names of the two folders, in any letter case; the first that exists counts."""


@dataclass(frozen=True, slots=True)
class VocFolder:
    """Folder in VOC layout: `Annotations`, `JPEGImages` and `ImageSets/Main`.

    Without a folder of annotations or images, the files lie in the folder itself, as labeling tools write them.
    """

    root: Path
    """Dataset folder."""
    name: str
    """Folder relative to `root`; empty for `root` itself."""
    images_name: str | None = None
    """Folder of the images in it; None: found by its name."""
    annotations_name: str | None = None
    """Folder of the XML files in it; None: found by its name."""

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return self.root / self.name

    @property
    def annotations(self) -> str:
        """Folder of the XML files relative to `root`, with a trailing slash; empty for `root` itself."""
        return self._subfolder(self.annotations_name, ANNOTATION_FOLDERS)

    @property
    def images(self) -> str:
        """Folder of the images relative to `root`, with a trailing slash; empty for `root` itself."""
        return self._subfolder(self.images_name, IMAGE_FOLDERS)

    def list_file(self, name: str) -> Path:
        """Return the path of a split list, named with or without `.txt`."""
        return self.path / "ImageSets" / "Main" / f"{name.removesuffix('.txt')}.txt"

    def find_annotations(self) -> list[tuple[str, str]]:
        """Return stem and name of all XML files in the folder of the annotations, sorted by name."""
        names = map(os.path.splitext, walk(self.root / self.annotations))
        return [(stem, stem + suffix) for stem, suffix in names if suffix.lower() == ".xml"]

    def find_images(self, folder: str | None = None) -> Iterator[tuple[str, str]]:
        """Yield stem and name of every image in the folder of the images, or another one, sorted by name."""
        for name in walk(self.root / (self.images if folder is None else folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                yield stem, name

    def _subfolder(self, configured: str | None, usual: Iterable[str]) -> str:
        parent = f"{self.name}/" if self.name else ""
        if configured is not None:
            folder = posixpath.normpath(configured)
            return parent if folder == "." else f"{parent}{folder}/"
        try:
            with os.scandir(self.path) as entries:  # `Annotations` before `annotations`
                found = {one.name.lower(): one.name for one in sorted(entries, key=_name, reverse=True) if one.is_dir()}
        except OSError:
            return parent
        return next((f"{parent}{found[name]}/" for name in usual if name in found), parent)


def _name(entry: "os.DirEntry[str]") -> str:
    return entry.name


def walk(folder: Path) -> list[str]:
    """Return the sorted names of all files in a folder and its sub-folders, relative to it, with forward slashes.

    Hidden folders and the files `._*` that macOS adds to archives are left out.

    Raises:
        DataError: A name is not UTF-8.
    """
    names: list[str] = []
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = () if real in seen else [one for one in folders if not one.startswith((".", "__MACOSX"))]
        prefix = "" if real in seen or path == str(folder) else f"{os.path.relpath(path, folder)}/"
        names += [] if real in seen else [prefix + name for name in files if not name.startswith("._")]
        seen.add(real)
    for name in names:
        if not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name):
            raise DataError(f"{folder}: the file name {name!r} is not UTF-8; rename it")
    return sorted(names)


def shapes_settings(dataset: ShapesDataset) -> dict[str, int]:
    """Return everything that decides the images of a shapes dataset.

    Raises:
        DataError: A value is too small.
    """
    for key, minimum in SHAPES_MINIMA.items():
        if getattr(dataset, key) < minimum:
            raise DataError(f"datasets of format shapes: {key} must be at least {minimum}, not {getattr(dataset, key)}")
    return {"version": SHAPES_VERSION} | {key: getattr(dataset, key) for key in SHAPES_MINIMA}


def shapes_folder(dataset: ShapesDataset) -> str:
    """Return the folder of a shapes dataset's VOC tree, relative to `DATA_ROOT`; generated or not."""
    text = json.dumps(shapes_settings(dataset), sort_keys=True)
    return f"{dataset.path}/{dataset.image_size}px-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def split_spec(
    root: Path, spec: str, images: str | None = None, annotations: str | None = None
) -> tuple[VocFolder, str | None]:
    """Parse a split of a VOC dataset in `params.yaml`.

    Args:
        root: Dataset folder.
        spec: `VOC2007/trainval` for the list `VOC2007/ImageSets/Main/trainval.txt`; a name with a trailing
            slash for all annotations of a folder without lists (`./` for `root`).
        images: Folder of the images in it; None: found by its name.
        annotations: Folder of the XML files in it; None: found by its name.

    Returns:
        The folder, and the name of the list; None for a folder without lists.

    Raises:
        DataError: The folder is outside the dataset folder.
    """
    parent, _, name = spec.rpartition("/")
    if not all(is_inside(one) for one in (spec, images or "", annotations or "")):
        raise DataError(f"split list {spec!r} is outside the dataset folder {root}; use a path inside it")
    folder = os.path.normpath(parent)
    return VocFolder(root, "" if folder == "." else folder, images, annotations), name or None


def is_inside(name: str) -> bool:
    """Return whether a file name read from a dataset stays inside the folder it is relative to.

    Only the text is checked. Symbolic links are followed: the owner of the folder created them.
    """
    if not SUSPICIOUS_NAME.search(name):
        return True
    parts = name.replace("\\", "/").split("/")
    return not (".." in parts or name.startswith(("/", "\\")) or "\0" in name or parts[0][1:2] == ":")


def check_present(name: str, dataset: Dataset) -> None:
    """Check that a dataset's folder, split lists, annotation files and image folders exist.

    Args:
        name: Name of the dataset in `params.yaml`, for messages.
        dataset: Its entry. `shapes` is never missing: it is generated on demand.

    Raises:
        DataError: A file or folder is missing; names its path and how to get it.
    """
    if isinstance(dataset, ShapesDataset):
        return
    if isinstance(dataset, YoloDataset):
        from detection.data.sources import yolo_files  # imports this module

        _check_holdout(name, yolo_files.check_present(name, dataset))
        return
    _check_holdout(name, dataset)
    root = data_root() / dataset.path
    needed = {split: _needed_paths(dataset, root, split) for split in ("train", "val", "test")}
    if not root.is_dir():
        download = _download_hint(path for paths in needed.values() for path in paths)
        raise DataError(
            f"dataset {name} is not at {root.resolve()}; {download or _layout_hint(dataset)}, "
            f"or set DATA_ROOT to the folder that contains {dataset.path}"
        )
    for split, paths in needed.items():
        if missing := [path for path in paths if not path.exists()]:
            hint = _download_hint(missing) or _spelling_hint(missing[0]) or f"see datasets.{name}.{split}"
            raise DataError(
                f"dataset {name}, {split}: {missing[0].relative_to(root)} is not in {root.resolve()}; {hint}"
            )
        for folder in _folders_without_lists(dataset, root, split):
            if not folder.find_annotations():
                raise DataError(
                    f"dataset {name}, {split}: no XML file in {(root / folder.annotations).resolve()}; "
                    f"{_layout_hint(dataset)}, or name the folders with `images` and `annotations`"
                )


def _check_holdout(name: str, dataset: VocDataset | CocoDataset | YoloDataset) -> None:
    key, fraction = f"datasets.{name}.holdout_fraction", dataset.holdout_fraction
    if not 0 <= fraction < 1:
        raise DataError(f"{key} must be at least 0 and below 1, not {fraction}")
    if not dataset.test and not fraction:
        raise DataError(f"datasets.{name} has no test: set it, or `holdout_fraction: 0.1` to use a tenth of train")
    if not dataset.val and not dataset.test and fraction >= 0.5:
        raise DataError(f"{key} is used for val and for test and must be below 0.5, not {fraction}")


def _download_hint(missing: Iterable[Path]) -> str:
    """Return the commands that download missing files; empty for files that cannot be downloaded."""
    from detection.data.archives import downloads  # its HTTP modules are a third of the start of `detection score`

    relative = (Path(os.path.relpath(path, data_root())).as_posix() for path in missing)
    commands = " and ".join(f"`detection download {name}`" for name in downloads(relative))
    return f"run {commands}" if commands else ""


def _spelling_hint(path: Path) -> str:
    """Return the most similar name beside a missing file; empty for an empty or a large folder."""
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    if path.suffix == ".txt":  # a split list is named without it
        return did_you_mean(path.stem, [name.removesuffix(".txt") for name in names]) if names else ""
    return did_you_mean(path.name, names) if 0 < len(names) <= MAX_SUGGESTIONS else ""


def _layout_hint(dataset: VocDataset | CocoDataset) -> str:
    """Return the files that the user has to provide; folders are relative to `DATA_ROOT`."""
    if isinstance(dataset, CocoDataset):
        parts = [part for split in (dataset.train, dataset.val, dataset.test) for part in split]
        files = ", ".join(dict.fromkeys(part.annotations for part in parts))
        folders = ", ".join(dict.fromkeys(part.images for part in parts))
        return f"put {files} and the images of {folders} into {dataset.path}"
    spec = dataset.train[0]
    parent = posixpath.normpath(f"{dataset.path}/{posixpath.dirname(spec)}")
    if spec.endswith("/"):
        return (
            f"put images into {parent}, each beside an XML file of the same name "
            f"(or into {parent}/JPEGImages and {parent}/Annotations)"
        )
    return f"put the VOC folders JPEGImages, Annotations and ImageSets into {parent}"


def _needed_paths(dataset: VocDataset | CocoDataset, root: Path, split: str) -> list[Path]:
    if isinstance(dataset, CocoDataset):
        return [root / path for part in getattr(dataset, split) for path in (part.annotations, part.images)]
    folders = [split_spec(root, spec, dataset.images, dataset.annotations) for spec in getattr(dataset, split)]
    return [path for folder, name in folders for path in (folder.path, name and folder.list_file(name)) if path]


def _folders_without_lists(dataset: VocDataset | CocoDataset, root: Path, split: str) -> list[VocFolder]:
    if isinstance(dataset, CocoDataset):
        return []
    folders = [split_spec(root, spec, dataset.images, dataset.annotations) for spec in getattr(dataset, split)]
    return [folder for folder, name in folders if name is None]
