"""Large files from the network: resumed where a connection broke off, from another mirror where one is dead.

`NAME.part` grows while a file is fetched; beside it `NAME.part.tag` holds where from, and what that server
calls this version of the file (ETag, or its date). The same server is asked to go on only `If-Range` it still
has that version; another one goes on where the first broke off, as an official archive is the same
everywhere. A file gets its own name once its size and SHA-256 are right.
"""

import hashlib
import logging
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from detection.data.download.archives import Archive
from detection.errors import DataError

log = logging.getLogger(__name__)
TIMEOUT_S = 30.0  # without a byte
TRIES = 5  # of one mirror in a row, none of which brought a byte
CHUNK = 1 << 20
Report = Callable[[int], None]
"""Told how many bytes are there."""


def fetch(archive: Archive, folder: Path, report: Report, pause_s: float = 1.0) -> Path:
    """Bring an archive to a folder, from the first mirror that has it whole.

    Args:
        archive: What, and from where.
        folder: Where it, and its unfinished part, are kept.
        report: Told how many bytes are there, as they come.
        pause_s: Before a mirror is asked again; doubled each time.

    Returns:
        The file; one that is there already with the right size and hash is not fetched again.

    Raises:
        DataError: No mirror gave it; says what each of them said, and what a person can do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.exists() and _right(path, archive):
        return path
    said = []
    for url in archive.urls:
        begun = _length(part) > 0
        try:
            _fetch_from(url, archive.size, part, report, pause_s)
            if begun and not _right(part, archive):  # the beginning may have been another place's
                part.unlink()
                _fetch_from(url, archive.size, part, report, pause_s)
        except (OSError, HTTPException) as error:
            said.append(f"{urlsplit(url).netloc}: {_reason(error)}")
        else:
            if _right(part, archive):
                part.replace(path)
                _tag(part).unlink(missing_ok=True)
                return path
            part.unlink()
            said.append(f"{urlsplit(url).netloc}: gave a damaged file")
        log.info("%s: %s", archive.name, said[-1])
    raise DataError(
        f"{archive.name} cannot be had ({'; '.join(said)}). Run the same command again to go on, name "
        f"another place that has it with --mirror URL, or put the file at {path.resolve()} and run it again"
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip into a folder; members that would leave it are refused before anything is written.

    A zip's CRC of each member is checked as it is unpacked.

    Raises:
        DataError: The archive is damaged, reaches outside the folder, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _refuse_outside(folder, zipped.namelist(), archive)
                zipped.extractall(folder)
            return
        with tarfile.open(archive) as tar:
            _refuse_outside(folder, tar.getnames(), archive)
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: {error}; it is not the official archive, delete it") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise DataError(f"{archive} is damaged ({reason}); delete it and download again") from None
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked into {folder.resolve()}: {error}") from None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        DataError: Fewer than `needed` bytes are free where `folder` is, or will be.
    """
    there = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DataError(
            f"{what} needs {needed / 1e9:.1f} GB at {folder.resolve()}, and {free / 1e9:.1f} GB are free; "
            "free some disk, or set DATA_ROOT to a larger one"
        )


def _fetch_from(url: str, size: int, part: Path, report: Report, pause_s: float) -> None:
    """Let `part` grow to `size` bytes; goes on after each break as long as a try brings something."""
    idle = 0
    while True:
        before = _length(part)
        report(before)
        if before == size:
            return
        try:
            _go_on(url, size, part, report)
            if (after := _length(part)) == size:
                return
            raise ConnectionError(f"the connection broke off at {after:,} of {size:,} bytes")
        except HTTPError as error:
            error.close()
            if error.code < 500:
                raise
            failure: OSError | HTTPException = error
        except (OSError, HTTPException) as error:
            failure = error
        idle = 0 if _length(part) > before else idle + 1
        if idle >= (2 if isinstance(failure, URLError) else TRIES):
            raise failure
        log.info("%s: %s; trying again", urlsplit(url).netloc, _reason(failure))
        time.sleep(pause_s * 2**idle)


def _go_on(url: str, size: int, part: Path, report: Report) -> None:
    """One request: append to `part`, or write it anew where the server begins at the beginning."""
    have, tag = _length(part), _tag(part)
    headers = {"User-Agent": "detection-pipeline", "Accept-Encoding": "identity"}
    if 0 < have < size:
        headers["Range"] = f"bytes={have}-"
        place, _, version = tag.read_text(encoding="utf-8").partition("\n") if tag.exists() else ("", "", "")
        if place == url and version:
            headers["If-Range"] = version
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        going_on = answer.status == 206
        total = _total(answer)
        if total is not None and total != size:
            raise OSError(f"has {total} bytes under this name, not {size}")
        if going_on and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise OSError("answers with another part than was asked for")
        version = answer.headers.get("ETag") or ""
        version = answer.headers.get("Last-Modified") or "" if version.startswith("W/") else version
        with part.open("ab" if going_on else "wb") as file:
            tag.write_text(f"{url}\n{version}", encoding="utf-8")
            for chunk in _chunks(answer):
                file.write(chunk)
                report(file.tell())
                if file.tell() > size:
                    raise OSError(f"gives more than the {size} bytes it should have")


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes: `read` would wait for a whole chunk and lose it if the connection breaks."""
    while chunk := answer.read1(CHUNK):
        yield chunk


def _total(answer: HTTPResponse) -> int | None:
    """Size of the whole file, as the server tells it."""
    if answer.status == 206:
        total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
    else:
        total = answer.headers.get("Content-Length") or ""
    return int(total) if total.isdigit() else None


def _right(path: Path, archive: Archive) -> bool:
    if _length(path) != archive.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == archive.sha256


def _refuse_outside(folder: Path, names: list[str], archive: Path) -> None:
    root = folder.resolve()
    for name in names:
        if not (root / name).resolve().is_relative_to(root):
            raise DataError(
                f"{archive}: its member {name} would leave {folder}; it is not the official archive"
            )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _reason(error: OSError | HTTPException) -> str:
    if isinstance(error, HTTPError):
        return f"answers {error.code} {error.reason}"
    if isinstance(error, URLError):
        return f"is not reached, {getattr(error.reason, 'strerror', None) or error.reason}"
    return str(error) or type(error).__name__
