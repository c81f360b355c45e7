"""Size, EXIF orientation and completeness of image files, read without decoding them.

For JPEG the header and the end marker are read, about 80 µs per image; for PNG all checksums are verified. Files
without an end marker and files of other formats are decoded.
"""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from detection.data.loading.image_guard import check_png, open_image
from detection.data.loading.image_io import HEIF_HINT, is_unreadable_heif

EXIF_ORIENTATION = 0x0112
"""EXIF tag: 1 as stored, 2 to 4 mirrored or upside down, 5 to 8 with height and width exchanged."""
END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
TAIL_BYTES = 64
THREADS = 8
"""Reader threads: they overlap waiting for the disk; the reading itself holds the GIL."""


class Header(NamedTuple):
    """Header of one image file."""

    length: int = 0
    """File size in bytes."""
    height: int = 0
    """Stored height in pixels."""
    width: int = 0
    """Stored width in pixels."""
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    tail: bytes = b""
    """Last bytes of the file; equal size and tail identify candidates for identical images."""
    missing: bool = False
    """True if the file does not exist."""
    problem: str = ""
    """Reason why the image cannot be read; empty if it can."""


def read_headers(root: Path, files: Iterable[str], decode: bool) -> list[Header]:
    """Read the headers of image files.

    Args:
        root: Dataset folder.
        files: Image files relative to it.
        decode: Decode every image completely.

    Returns:
        One header per file, in the same order.
    """
    with warnings.catch_warnings():  # warning filters are per process, not per thread
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(_read_header, repeat(str(root)), files, repeat(decode), chunksize=64))


def _read_header(root: str, name: str, decode: bool) -> Header:
    size = 0
    try:
        with open(f"{root}/{name}", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read()
            file.seek(0)
            if is_unreadable_heif(name):
                return Header(length=size, problem=HEIF_HINT)
            with open_image(file) as image:
                height, width = image.height, image.width
                orientation = _orientation(image) if "exif" in image.info else 1
                if image.format == "PNG":
                    position = file.tell()
                    file.seek(0)
                    check_png(file.read())
                    file.seek(position)
                if decode or END_MARKERS.get(image.format or "", b"\0none") not in tail:
                    image.draft(None, (1, 1))  # decodes a JPEG at an eighth of its size, but all of its bytes
                    image.load()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Header(missing=True)
    except UnidentifiedImageError:
        return Header(length=size, problem="is not an image, or of an unknown format" if size else "is empty")
    except Exception as error:  # PIL's decoders raise any exception on broken files
        return Header(length=size, problem=str(error) or type(error).__name__)
    return Header(size, height, width, orientation, tail)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block has no orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
