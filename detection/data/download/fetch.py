"""Download of large files: resumed after a broken connection, continued from the next mirror, then extracted.

`NAME.part` grows while a file is downloaded and becomes `NAME` when size and SHA-256 are correct. Any server
may continue it, because mirrors have the same file; if the hash is then wrong, the file is downloaded again
in whole.
"""

import hashlib
import logging
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from detection.data.download.archives import Archive
from detection.errors import DataError

log = logging.getLogger(__name__)
TIMEOUT_S = 30.0  # without a byte
MAX_IDLE_TRIES = 5  # consecutive requests to a mirror without a new byte; 2 if it cannot be reached at all
CHUNK_BYTES = 1 << 20
Report = Callable[[int], None]
"""Called with the number of bytes downloaded so far."""


def fetch(archive: Archive, folder: Path, report: Report, pause_s: float = 1.0) -> Path:
    """Download an archive to a folder from the first mirror that delivers it; an existing valid file is kept.

    Args:
        archive: File and mirrors.
        folder: Folder of the file and its unfinished `.part`.
        report: Progress callback.
        pause_s: Pause before a request is repeated; doubled each time.

    Raises:
        DataError: No mirror delivered the file; with each mirror's error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if _is_valid(path, archive):
        return path
    errors = []
    for url in archive.urls:
        error = "delivered a damaged file"
        try:
            for _ in range(2):  # again from the start if the file joins bytes of two versions
                resumed = _download(url, archive.size, part, report, pause_s)
                if _is_valid(part, archive):
                    part.replace(path)
                    return path
                part.unlink()
                if not resumed:
                    break
        except (OSError, HTTPException) as raised:
            error = _reason(raised)
        errors.append(f"{urlsplit(url).netloc}: {error}")
        log.info("%s: %s", archive.name, errors[-1])
    raise DataError(
        f"{archive.name} cannot be downloaded ({'; '.join(errors)}). Run the same command again to resume, "
        f"add a mirror with --mirror URL, or put the file at {path.resolve()} and run it again"
    )


def extract(archive: Path, folder: Path) -> None:
    """Extract a tar or zip file; refuse members that would leave the folder before anything is written.

    Raises:
        DataError: The archive is damaged, has members outside the folder, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:  # checks the CRC of each member
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
        raise DataError(f"{archive} cannot be extracted to {folder.resolve()}: {error}") from None


def check_disk_space(folder: Path, needed: int, name: str) -> None:
    """Check that `needed` bytes are free at a folder, which need not exist yet.

    Raises:
        DataError: The disk has less space.
    """
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DataError(
            f"{name} needs {needed / 1e9:.1f} GB at {folder.resolve()}, and {free / 1e9:.1f} GB are free; "
            "free disk space, or set DATA_ROOT to a folder on a larger disk"
        )


def size_of(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def _download(url: str, size: int, part: Path, report: Report, pause_s: float) -> bool:
    """Download until `part` has `size` bytes; repeat broken requests as long as they make progress.

    Returns:
        Whether part of the file came from an earlier request.
    """
    idle, resumed = 0, size_of(part) > 0
    while (start := size_of(part)) != size:
        report(start)
        resumed |= start > 0
        failure: OSError | HTTPException
        try:
            _request(url, size, part, report)
            break
        except HTTPError as error:
            error.close()
            if error.code < 500:
                raise
            failure = error
        except (OSError, HTTPException) as error:
            failure = error
        idle = 0 if size_of(part) > start else idle + 1
        if idle >= (2 if isinstance(failure, URLError) else MAX_IDLE_TRIES):
            raise failure
        log.info("%s: %s; retrying", urlsplit(url).netloc, _reason(failure))
        time.sleep(pause_s * 2**idle)
    report(size)
    return resumed


def _request(url: str, size: int, part: Path, report: Report) -> None:
    """Send one request; append to `part`, or overwrite it if the server ignores the range."""
    start = size_of(part)
    headers = {"User-Agent": "detection-pipeline", "Accept-Encoding": "identity"}
    if 0 < start < size:
        headers["Range"] = f"bytes={start}-"
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as response:
        partial = response.status == 206
        content_range = response.headers.get("Content-Range") or ""
        if partial and not content_range.startswith(f"bytes {start}-"):
            raise OSError("sent another range than requested")
        total = content_range.rpartition("/")[2] if partial else response.headers.get("Content-Length") or ""
        if total.isdigit() and int(total) != size:
            raise OSError(f"has {total} bytes under this name, not {size}")
        with part.open("ab" if partial else "wb") as file:
            # read1 returns bytes as they arrive; read would lose a chunk if the connection breaks
            while chunk := response.read1(CHUNK_BYTES):
                file.write(chunk)
                report(file.tell())
                if file.tell() > size:
                    raise OSError(f"sent more than the expected {size} bytes")
            received = file.tell()
    if received < size:
        raise ConnectionError(f"connection broke at {received:,} of {size:,} bytes")


def _is_valid(path: Path, archive: Archive) -> bool:
    if size_of(path) != archive.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == archive.sha256


def _refuse_outside(folder: Path, names: list[str], archive: Path) -> None:
    root = folder.resolve()
    for name in names:
        if not (root / name).resolve().is_relative_to(root):
            raise DataError(f"{archive}: member {name} would leave {folder}; it is not the official archive")


def _reason(error: OSError | HTTPException) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, URLError):
        return f"unreachable, {getattr(error.reason, 'strerror', None) or error.reason}"
    return str(error) or type(error).__name__
