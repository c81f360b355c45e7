"""`detection download`: fetch a dataset's official archives and extract them to `DATA_ROOT`."""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from detection.commands import Command
from detection.data.archives import SOURCES, Archive, Report, check_disk_space, extract, fetch, size_of
from detection.errors import DataError
from detection.files import data_root, locked, read_json, write_json

EXTRACTED_RATIO = 1.05
"""Size of the extracted files relative to the archive."""
LOG_INTERVAL_S = 5.0
"""Seconds between progress lines."""
log = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=tuple(SOURCES), metavar="DATASET", help=", ".join(SOURCES))
    mirror = "folder URL with the archives, tried first; may be repeated"
    parser.add_argument("--mirror", action="append", default=[], metavar="URL", help=mirror)
    parser.add_argument("--keep", action="store_true", help="keep the archives after extraction")


def download(name: str, mirrors: list[str], keep: bool = False) -> str:
    """Download and extract a dataset; skip archives that are extracted already, resume unfinished ones.

    Args:
        name: Key of `SOURCES`.
        mirrors: Folder URLs that are tried before the known addresses.
        keep: Keep the archives after extraction.

    Raises:
        DataError: A mirror is not a URL, no mirror has an archive, the disk is too small, or an archive is
            damaged.
    """
    source = SOURCES[name]
    for mirror in mirrors:
        _check_url(mirror)
    folder, archives = data_root() / source.folder, data_root() / "archives"
    try:
        archives.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{archives} cannot be created: {error.strerror}; set DATA_ROOT to another folder") from None
    with locked(archives / f"{name}.lock"):
        record = archives / f"{name}.json"
        done = _extracted(record)
        missing = [
            one
            for one in source.archives
            if done.get(one.name) != one.sha256 or not all((folder / file).exists() for file in one.creates)
        ]
        if not missing:
            return f"{name} is complete: {folder.resolve()}"
        needed = EXTRACTED_RATIO * sum(one.size for one in missing) + max(one.size for one in missing)
        files = [archives / f"{one.name}{suffix}" for one in missing for suffix in ("", ".part")]
        check_disk_space(folder, round(needed - sum(map(size_of, files))), name)
        for one in missing:
            urls = (*(f"{mirror.rstrip('/')}/{one.name}" for mirror in mirrors), *one.urls)
            start = size_of(archives / f"{one.name}.part")
            log.info("%s, %s%s", one.name, _bytes(one.size), f", resuming at {_bytes(start)}" if start else "")
            path = fetch(replace(one, urls=urls), archives, _progress(one))
            log.info("%s: size and SHA-256 verified; extracting to %s", one.name, folder.resolve())
            extract(path, folder)
            done |= {one.name: one.sha256}
            write_json(record, done)
            if not keep:
                path.unlink()
    return f"{name} is downloaded: {folder.resolve()}\nnext: dvc exp run -S dataset={name}"


def _check_url(mirror: str) -> None:
    try:
        valid = mirror.isascii() and urlsplit(mirror).scheme in ("http", "https", "ftp", "file")
    except ValueError:
        valid = False
    if not valid:
        raise DataError(f"--mirror {mirror}: not a URL; give one such as http://server/folder or file:///folder")


def _extracted(record: Path) -> dict[str, str]:
    """SHA-256 of the extracted archives by name; empty if the record is missing or invalid."""
    try:
        return read_json(record)
    except ValueError:
        return {}


def _progress(archive: Archive) -> Report:
    """Return a callback that logs the progress every `LOG_INTERVAL_S`."""
    last = time.monotonic()

    def report(count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_INTERVAL_S:
            last = time.monotonic()
            percent = 100 * count // archive.size
            log.info("%s: %s of %s (%d %%)", archive.name, _bytes(count), _bytes(archive.size), percent)

    return report


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


COMMANDS = {"download": Command(_add_arguments, lambda args: download(args.name, mirrors=args.mirror, keep=args.keep))}
