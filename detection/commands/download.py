"""`detection download`: the official archives of a dataset, unpacked where its entry in params.yaml looks."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from detection.data.download.archives import SOURCES, Archive
from detection.data.download.fetch import Report, check_room, fetch, unpack
from detection.errors import DataError
from detection.files import data_root, locked

log = logging.getLogger(__name__)
UNPACKED = 1.05  # the content takes about as much room as the archive, which is deleted afterwards
LINE_S = 10.0  # between plain lines where there is no terminal


def download(name: str, mirror: list[str] | None = None, keep: bool = False) -> str:
    """Download and unpack a dataset; what is there already is recognised, what broke off goes on.

    Args:
        name: `voc2007`, `voc2012` or `coco2017`.
        mirror: Folders (URLs) to look for the archives in before the known places.
        keep: Keep the archives once they are unpacked.

    Raises:
        DataError: A mirror is no URL, no place has an archive, the disk is too small, or an archive is not
            what it should be.
    """
    source = SOURCES[name]
    for place in mirror or []:
        _check_url(place)
    folder, kept = data_root() / source.folder, data_root() / "archives"
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{kept} cannot be made: {error.strerror}; set DATA_ROOT to another folder") from None
    with locked(kept / f"{name}.lock"):
        done = kept / f"{name}.json"
        left = [one for one in source.archives if not _unpacked(one, folder, done)]
        if not left:
            return f"{name} is there already: {folder.resolve()}"
        room = UNPACKED * sum(one.size for one in left) + max(one.size for one in left)
        have = sum(_there(kept / one.name) + _there(kept / f"{one.name}.part") for one in left)
        check_room(folder, round(room - have), name)
        for one in left:
            urls = (*(f"{place.rstrip('/')}/{one.name}" for place in mirror or []), *one.urls)
            begun = _there(kept / f"{one.name}.part")
            log.info("%s, %s%s", one.name, _size(one.size), f", going on at {_size(begun)}" if begun else "")
            with _progress(one) as report:
                archive = fetch(Archive(one.name, one.size, one.sha256, urls, one.makes), kept, report)
            log.info("%s: size and SHA-256 are right; unpacking into %s", one.name, folder.resolve())
            unpack(archive, folder)
            _remember(one, done)
            if not keep:
                archive.unlink()
    return f"{name} is there: {folder.resolve()}\nnext: dvc exp run -S dataset={name}"


def _check_url(place: str) -> None:
    try:
        known = place.isascii() and urlsplit(place).scheme in ("http", "https", "ftp", "file")
    except ValueError:
        known = False
    if not known:
        raise DataError(
            f"--mirror {place}: this is no URL; give one such as http://server/folder, or file:///folder "
            "for a folder of this machine"
        )


def _unpacked(archive: Archive, folder: Path, done: Path) -> bool:
    """Whether an archive was unpacked to its end, and nobody has removed what it made."""
    return _finished(done).get(archive.name) == archive.sha256 and all(
        (folder / made).exists() for made in archive.makes
    )


def _remember(archive: Archive, done: Path) -> None:
    content = _finished(done) | {archive.name: archive.sha256}
    done.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _finished(done: Path) -> dict[str, str]:
    """SHA-256 of the archives that were unpacked, by name; none where the file is not there or not whole."""
    try:
        return dict(json.loads(done.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


@contextmanager
def _progress(archive: Archive) -> Iterator[Report]:
    """A bar on a terminal, a plain line every ten seconds elsewhere."""
    if sys.stdout.isatty():
        from rich import progress as bars

        columns = (
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns) as bar, _lines_above():
            task = bar.add_task(archive.name, total=archive.size)
            yield lambda there: bar.update(task, completed=there)
        return
    last = time.monotonic()

    def line(there: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_S:
            last = time.monotonic()
            log.info(
                "%s: %s of %s (%d %%)",
                archive.name,
                _size(there),
                _size(archive.size),
                100 * there // archive.size,
            )

    yield line


@contextmanager
def _lines_above() -> Iterator[None]:
    """While a bar stands, `rich` has a stdout of its own: what is logged comes above it, not into it."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
    before = [(handler, handler.setStream(sys.stdout)) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _there(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
