"""Fingerprint of a dataset's raw files, which `check` takes in every `dvc repro` and `prepare` depends on.

Annotation files and split lists count by content, images by name and size in bytes. The contents' hashes are kept in
`<DVC_ROOT>/.checkpoints/check`, so that only files whose size, times or inode differ are read again. The fingerprint
is the same in a clone and after `touch`. Imports no numpy unless a pinned dataset has changed.
"""

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detection.data.sources.digest import Digest
from detection.data.sources.layout import shapes_folder, split_spec, walk
from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES, checkpoint_root, data_root, read_json, write_json
from detection.params.datasets import CocoDataset, Dataset, ShapesDataset, VocDataset, YoloDataset
from detection.params.stages import Checks

SHAPES_MARKER = "shapes.json"
"""Settings, statistics and fingerprint of a generated tree; written last."""
TIME_RESOLUTION_NS = 2_000_000_000
"""Age below which a change may have left a file's times as they were; younger files are read again."""
YOLO_SUFFIXES = (".txt", ".yaml", ".yml", ".data", ".names", ".labels", ".json")
MAX_NAMES = 3
UNKNOWN = (-1, -1, -1, -1)


class Stored(NamedTuple):
    """A raw file as it was seen."""

    value: str
    """Hash of an annotation file's content, size in bytes of an image."""
    stat: tuple[int, ...]
    """Size, times of change and inode of an annotation file; `UNKNOWN` if it must be read again."""


Listing = dict[str, Stored]
"""Files by their name relative to the dataset folder."""


def fingerprint(name: str, dataset: Dataset, checks: Checks) -> tuple[str, str]:
    """Return the hash of a dataset's raw files, and what has changed since it was last taken.

    Args:
        name: Name of the dataset in `params.yaml`, for messages.
        dataset: Its entry. Shapes that are as generated, or not generated yet, have the hash of their settings.
        checks: Actions that decide which files the dataset's digest covers.

    Raises:
        DataError: The data differs from the pinned `digest`; names the files that have changed.
    """
    root = data_root() / (shapes_folder(dataset) if isinstance(dataset, ShapesDataset) else dataset.path)
    if isinstance(dataset, ShapesDataset) and not root.is_dir():
        return shapes_folder(dataset), ""
    record = _record_file(root, dataset, checks)
    before = _read_record(record)
    known = _listing(before)
    listing = list_files(root, dataset, known)
    changes = describe_changes(known, listing) if known else ""
    accepted = before.get("digest")
    if dataset.digest and (changes or accepted != dataset.digest):
        from detection.data.sources.dataset import raw_digest

        digest = raw_digest(name, dataset, checks)
        if digest != dataset.digest:
            raise DataError(pin_message(name, dataset, root, digest, changes if accepted == dataset.digest else ""))
    if listing != known or accepted != dataset.digest:
        write_json(record, {"digest": dataset.digest, "files": listing}, indent=None)
    result = _hash(listing)
    if isinstance(dataset, ShapesDataset) and result == read_json(root / SHAPES_MARKER).get("fingerprint"):
        result = shapes_folder(dataset)
    return result, changes


def last_listing(dataset: Dataset, checks: Checks) -> dict[str, str]:
    """Value by name of the raw files that `fingerprint` has seen last."""
    root = data_root() / (shapes_folder(dataset) if isinstance(dataset, ShapesDataset) else dataset.path)
    return {name: stored.value for name, stored in _listing(_read_record(_record_file(root, dataset, checks))).items()}


def changes_since_pinned(dataset: Dataset, checks: Checks, root: Path) -> str:
    """Describe how the raw files differ from those last seen with the pinned digest; empty if that is unknown."""
    before = _read_record(_record_file(root, dataset, checks))
    if before.get("digest") != dataset.digest:
        return ""
    known = _listing(before)
    return describe_changes(known, list_files(root, dataset, known))


def pin_message(name: str, dataset: Dataset, root: Path, digest: str, changes: str) -> str:
    """Error message for data that differs from the pinned."""
    return (
        f"dataset {name} in {root} differs from the pinned datasets.{name}.digest{': ' if changes else ''}{changes} "
        f"(found {digest}, expected {dataset.digest}); restore the data, or run `detection pin {name}` to use it as is"
    )


def list_files(root: Path, dataset: Dataset, known: Mapping[str, Stored]) -> Listing:
    """List the files that decide what is read from a dataset.

    Args:
        root: Dataset folder.
        dataset: Its entry.
        known: Earlier listing; the content of a file with the same size, times and inode is not read again.
    """
    started, listing = time.time_ns(), {}
    for name, is_annotation in _names(root, dataset):
        if name in listing:
            continue
        path = f"{root}/{name}"
        try:
            stat = os.stat(path)
        except OSError:  # a missing list, a broken link
            continue
        if not is_annotation:
            listing[name] = Stored(str(stat.st_size), ())
            continue
        key = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if (before := known.get(name)) and before.stat == key:
            listing[name] = before
            continue
        with open(path, "rb") as file:
            value = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
        recent = started - max(stat.st_mtime_ns, stat.st_ctime_ns) < TIME_RESOLUTION_NS
        listing[name] = Stored(value, UNKNOWN if recent else key)
    return listing


def tree_hash(root: Path) -> str:
    """Fingerprint of a tree of shapes."""
    return _hash(list_files(root, ShapesDataset(format="shapes", path=""), {}))


def _hash(listing: Mapping[str, Stored]) -> str:
    digest = Digest()
    for name, stored in listing.items():
        digest.entry(name, stored.value)
    return digest.hexdigest()


def describe_changes(before: Mapping[str, Stored], after: Mapping[str, Stored]) -> str:
    """Name the added, changed and removed files; empty if there are none."""
    parts = []
    for what, names in (
        ("added", after.keys() - before.keys()),
        ("changed", {name for name in after.keys() & before.keys() if after[name].value != before[name].value}),
        ("removed", before.keys() - after.keys()),
    ):
        if names:
            more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
            parts.append(f"{', '.join(sorted(names)[:MAX_NAMES])}{more} {what}")
    return "; ".join(parts)


def _names(root: Path, dataset: Dataset) -> Iterator[tuple[str, bool]]:
    """Yield names relative to `root`, and whether the file counts by content; a name may come twice."""
    if isinstance(dataset, CocoDataset):
        parts = [*dataset.train, *dataset.val, *dataset.test]
        yield from ((part.annotations, True) for part in parts)
        for images in dict.fromkeys(part.images for part in parts):
            yield from ((name, False) for name in _walk(root, images) if not name.rpartition("/")[2].startswith("."))
        return
    if isinstance(dataset, YoloDataset):
        for name in walk(root):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES or suffix in YOLO_SUFFIXES:
                yield name, suffix in YOLO_SUFFIXES
        return
    if isinstance(dataset, ShapesDataset):
        dataset = VocDataset(format="voc", path="", train=("train",), val=("val",), test=("test",))
    folders: list[tuple[str, Collection[str]]] = []
    for spec in (*dataset.train, *dataset.val, *dataset.test):
        folder, list_name = split_spec(root, spec, dataset.images, dataset.annotations)
        if list_name is not None:
            yield folder.list_file(list_name).relative_to(root).as_posix(), True
        folders += [(folder.annotations, (".xml",)), (folder.images, IMAGE_SUFFIXES)]
    yield from _filter(root, dict.fromkeys(folders))


def _filter(root: Path, folders: Iterable[tuple[str, Collection[str]]]) -> Iterator[tuple[str, bool]]:
    """Yield the files with the suffixes that are looked for in each folder."""
    names: dict[str, list[str]] = {}
    for folder, suffixes in folders:
        if folder not in names:
            names[folder] = _walk(root, folder)
        for name in names[folder]:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes:
                yield name, suffix == ".xml"


def _walk(root: Path, folder: str) -> list[str]:
    prefix = os.path.normpath(folder) if folder else "."
    return walk(root) if prefix == "." else [f"{prefix}/{name}" for name in walk(root / prefix)]


def _record_file(root: Path, dataset: Dataset, checks: Checks) -> Path:
    """Record of the files that were last seen, per dataset folder, entry and checks."""
    entry = {key: value for key, value in asdict(dataset).items() if key not in ("digest", "license")}
    key = json.dumps([str(root.resolve()), entry, asdict(checks)], sort_keys=True)
    return checkpoint_root() / "check" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.json"


def _read_record(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ValueError:  # not written completely
        return {}


def _listing(record: Mapping[str, Any]) -> Listing:
    return {name: Stored(value, tuple(stat)) for name, (value, stat) in record.get("files", {}).items()}
