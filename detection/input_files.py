"""Image and video files named on the command line: files, folders, patterns and lists of paths."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from detection.text import listed

log = logging.getLogger(__name__)


class InputFiles(NamedTuple):
    """Files to detect on, in the order in which they were named."""

    images: list[Path]
    videos: list[Path]


def find_inputs(sources: Sequence[Path], recursive: bool = False, exclude: Path | None = None) -> InputFiles:
    """Image and video files of all sources, each once.

    Args:
        sources: Files, folders (of which the images are taken), patterns, or text files with one path per line,
            relative to the text file or to the current folder. A file whose type is unknown counts as an image.
        recursive: Search the sub-folders of folders too.
        exclude: Folder whose files are left out when sub-folders or patterns are searched: that of the results.

    Raises:
        DataError: A source does not exist or has no images.
    """
    inside = os.path.realpath(exclude) if exclude is not None else None
    files: list[Path] = []
    for source in sources:
        if source.suffix.lower() == ".txt" and source.is_file():
            files += _read_list(source)
        elif not source.exists() and glob.has_magic(str(source)):
            files += _match(source, recursive, inside)
        else:
            files += image_files(source, recursive, inside)
    unique: dict[tuple[str, str], Path] = {}
    for file in files:
        unique.setdefault((os.path.realpath(file.parent), file.name), file)  # links make several paths to a folder
    result = list(unique.values())
    if not result:
        raise DataError(f"there are no images in {listed([str(source) for source in sources])}")
    videos = [file for file in result if file.suffix.lower() in VIDEO_SUFFIXES]
    return InputFiles([file for file in result if file.suffix.lower() not in VIDEO_SUFFIXES], videos)


def image_files(source: Path, recursive: bool = False, exclude: str | None = None) -> list[Path]:
    """The file itself, or the image files of a folder in order of name.

    Hidden files and folders are left out. Links to folders are followed, and each folder is searched once.

    Args:
        source: A file or a folder.
        recursive: Search the folder's sub-folders too; one that cannot be read is returned as if it were an image.
        exclude: Real path of a sub-folder that is left out.

    Raises:
        DataError: The path does not exist, or the folder holds no image files.
    """
    if not source.is_dir():
        if not source.exists() and not source.is_symlink():
            raise DataError(f"{source} does not exist; give an image file or a folder of images")
        return [source]
    unreadable: list[Path] = []
    found = list(_walk(source, recursive, exclude, unreadable))
    files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or path.is_symlink())]
    others = Counter(path.suffix.lower() or path.name for path in found if path.suffix.lower() not in IMAGE_SUFFIXES)
    if not files and not unreadable:
        hint = "" if recursive else "; --recursive searches its sub-folders"
        raise DataError(f"there are no image files in {source} ({', '.join(IMAGE_SUFFIXES)}){hint}")
    if others:
        plural = "" if others.total() == 1 else "s"
        log.info("%s: %d file%s of other types left out (%s)", source, others.total(), plural, listed(sorted(others)))
    return sorted(files + unreadable)


def _walk(folder: Path, recursive: bool, exclude: str | None, unreadable: list[Path]) -> Iterator[Path]:
    """Yield the visible files of a folder, and append folders that cannot be read to `unreadable`."""

    def add(error: OSError) -> None:
        unreadable.append(Path(error.filename))

    seen = set()
    for path, folders, names in os.walk(folder, onerror=add, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = [name for name in folders if recursive and not name.startswith((".", "__MACOSX"))]
        if real in seen or (real == exclude and path != str(folder)):
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(path, name) for name in names if not name.startswith("."))


def _match(pattern: Path, recursive: bool, exclude: str | None) -> list[Path]:
    """Files that match a pattern; if it matches folders only, their images."""
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    if not found:
        raise DataError(f"{pattern} matches no file; give an image file or a folder of images")
    types = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files = [file for file in found if file.suffix.lower() in types and not file.is_dir()]
    if not files:
        return [file for folder in found if folder.is_dir() for file in image_files(folder, recursive, exclude)]
    return [file for file in files if exclude is None or Path(exclude) not in Path(os.path.realpath(file)).parents]


def _read_list(source: Path) -> list[Path]:
    """Paths in a text file, relative to its folder, or to the current one if they exist only there."""
    lines = (line.strip() for line in source.read_text("utf-8-sig", errors="surrogateescape").splitlines())
    paths = [Path(line) for line in lines if line]
    return [path if not (beside := source.parent / path).exists() and path.exists() else beside for path in paths]
