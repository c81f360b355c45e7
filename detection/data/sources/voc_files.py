"""Files of a folder in VOC layout: annotation and image of each id."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from detection.data.sources.layout import VocFolder, is_inside, walk
from detection.files import IMAGE_SUFFIXES

LIST_FLAGS = re.compile(r"(\s+-?\d+)+$")
"""Flags after the ids in the split lists of one class."""


def name_key(name: str) -> str:
    """Key under which names that differ in letter case, Unicode form or slashes are equal."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


class Names:
    """Relative names, found exactly, else by `name_key`, else by the last part of the path if it is unique."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = dict.fromkeys(names)
        self._alike: dict[str, list[str]] = {}
        for name in self.names:
            key = name_key(name)
            for alias in {key, key.rpartition("/")[2]}:
                self._alike.setdefault(alias, []).append(name)

    def find(self, name: str) -> str | None:
        """Return the stored name; None if there is none, or several that fit equally well."""
        if name in self.names:
            return name
        key = name_key(name).removeprefix("./")
        for alias in (key, key.rpartition("/")[2]):
            found = self._alike.get(alias, [])
            if len(found) == 1:
                return found[0]
        return None


def spelled_files(root: Path, folder: str, file_names: Iterable[str]) -> list[str]:
    """Return files of a folder relative to `root`, as the file system spells them; missing ones as they are."""
    names = Names(walk(root / folder))
    return [posixpath.normpath(f"{folder}/{names.find(name) or name}") for name in file_names]


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(os.path.splitext(name)[0], []).append(name)
    return files


class VocFiles:
    """Annotation files and images of a folder; the ids are the annotations' names without suffix."""

    def __init__(self, folder: VocFolder) -> None:
        self.annotations, self.images = folder.annotations, folder.images
        self._xml = {stem: f"{self.annotations}{name}" for stem, name in folder.find_annotations()}
        self._xml_names = Names(self._xml)
        self._files = _by_stem(name for _, name in folder.find_images())
        beside = () if self.images == self.annotations else folder.find_images(self.annotations)
        self._beside = _by_stem(name for _, name in beside)
        self._stems, self._beside_stems = Names(self._files), Names(self._beside)
        self._names = Names(name for names in self._files.values() for name in names)
        self._used: set[str] = set()

    def ids(self) -> list[str]:
        """Return the ids of all annotation files."""
        return [*self._xml]

    def annotation(self, image_id: str) -> str:
        """Return the annotation file of an id relative to the dataset folder, existing or not."""
        return self._xml.get(image_id) or f"{self.annotations}{image_id}.xml"

    def has_annotation(self, image_id: str) -> bool:
        """Return True if the id has an annotation file."""
        return image_id in self._xml

    def parse_line(self, line: str) -> str:
        """Return the id in a line of a split list: an id with flags, or a file name with a suffix or a path."""
        image_id = LIST_FLAGS.sub("", line)
        if image_id != line and line in self._xml:
            return line
        if image_id in self._xml:
            return image_id
        for name in (image_id, *reversed(image_id.replace(",", " ").split())):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in (*IMAGE_SUFFIXES, ".xml"):
                stem = name
            if found := self._xml_names.find(stem) or self._stems.find(stem):
                return found
        return image_id

    def image(self, image_id: str, filename: str = "") -> tuple[list[str], str]:
        """Return the images of an id relative to the dataset folder, and a name outside the folder.

        An image has the id's name, in the folder of the images or beside the annotation, else that in
        `<filename>`. Several images are ambiguous.
        """
        for folder, files, stems in (
            (self.images, self._files, self._stems),
            (self.annotations, self._beside, self._beside_stems),
        ):
            if stem := stems.find(image_id):
                return self._use(folder + name for name in files[stem]), ""
        if not filename:
            return [], ""
        if found := self._names.find(filename) or self._names.find(filename.replace("\\", "/").rpartition("/")[2]):
            return self._use([self.images + found]), ""
        return ([self.images + filename], "") if is_inside(filename) else ([], filename)

    def unused(self) -> list[tuple[str, str]]:
        """Return stem and file of the images that no annotation was read for."""
        names = [(stem, self.images + name) for stem, names in self._files.items() for name in names]
        return sorted((stem, name) for stem, name in names if name not in self._used)

    def _use(self, names: Iterable[str]) -> list[str]:
        used = [*names]
        self._used.update(used)
        return used
