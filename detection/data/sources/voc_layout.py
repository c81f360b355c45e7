"""Where a VOC tree keeps what: split lists, annotations and pictures.

`VOC2007/trainval` is the list `VOC2007/ImageSets/Main/trainval.txt`. A name that ends in `/` is a folder
without lists: all its annotations (`./` is the dataset's own folder). Where a folder has no `Annotations` or
no `JPEGImages`, the files lie in the folder itself, as labelling tools write them.

Imports no numpy: `check` looks here, in half a second.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detection.errors import DataError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)

SUSPECT = re.compile(r"\.\.|^[/\\]|^.:|\0")
"""What a name that leads out of its folder has; most names have nothing of it."""


@dataclass(frozen=True, slots=True)
class VocFolder:
    """One folder in VOC layout."""

    root: Path
    """The dataset's folder."""
    name: str
    """The folder relative to it; empty for the dataset's folder itself."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.root / self.name

    @property
    def annotations(self) -> str:
        """Folder of the XML files, relative to `root`, with a slash at its end unless it is `root` itself."""
        return self._inner("Annotations")

    @property
    def pictures(self) -> str:
        """Folder of the pictures, likewise."""
        return self._inner("JPEGImages")

    def list_file(self, name: str) -> Path:
        """The file of a split list."""
        return self.path / "ImageSets" / "Main" / f"{name}.txt"

    def find_annotations(self) -> list[str]:
        """Stems of all XML files, sorted."""
        names = _names(self.root / self.annotations)
        return [stem for stem, suffix in map(os.path.splitext, names) if suffix.lower() == ".xml"]

    def find_pictures(self) -> Iterator[tuple[str, str]]:
        """Stem and file name of every picture, sorted."""
        for name in _names(self.root / self.pictures):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                yield stem, name

    def _inner(self, name: str) -> str:
        parent = f"{self.name}/" if self.name else ""
        return f"{parent}{name}/" if (self.path / name).is_dir() else parent


def _names(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder))
    for name in names:
        if not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name):
            raise DataError(f"{folder}: the file name {name!r} is not UTF-8; rename it")
    return names


def split_spec(root: Path, spec: str) -> tuple[VocFolder, str | None]:
    """A split's entry in `params.yaml` as its folder, and its list; no list where it names a folder.

    Raises:
        DataError: It leads out of the dataset's folder.
    """
    parent, _, name = spec.rpartition("/")
    if not is_inside(spec):
        raise DataError(
            f"split list {spec!r}: leads out of the dataset's folder {root}; name what is inside it"
        )
    folder = os.path.normpath(parent)
    return VocFolder(root, "" if folder == "." else folder), name or None


def is_inside(name: str) -> bool:
    """Whether a name out of foreign text stays in the folder that it is relative to.

    Only the text is judged: a symbolic link was made by whoever owns the folder, and is followed.
    """
    if not SUSPECT.search(name):
        return True
    parts = name.replace("\\", "/").split("/")
    return not (".." in parts or name.startswith(("/", "\\")) or "\0" in name or parts[0][1:2] == ":")
