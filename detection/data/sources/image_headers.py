"""What a picture file says of itself, read without decoding it: size, EXIF's rotation, whether it is whole.

For JPEG and PNG the header and the end mark are read, about 80 µs a picture; a file without the mark, and any
other format, is decoded. `decode` decodes every one.
"""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

ORIENTATION = 0x0112
"""EXIF's tag: 1 is as stored, 2 to 4 mirror or turn upside down, 5 to 8 exchange height and width."""
END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
TAIL = 64
THREADS = 8
"""They wait for the disk together; the reading itself holds Python's lock."""


class Header(NamedTuple):
    """One picture file."""

    length: int = 0
    """Bytes of the file."""
    height: int = 0
    """In pixels, as stored."""
    width: int = 0
    orientation: int = 1
    """EXIF's, 1 to 8."""
    tail: bytes = b""
    """The last bytes: two pictures that share them and their size are most likely the same."""
    missing: bool = False
    """Whether there is no such file."""
    problem: str = ""
    """Why it cannot be read; empty if it can."""


def read_headers(root: Path, files: Iterable[str], decode: bool) -> list[Header]:
    """Read the headers of many pictures.

    Args:
        root: The dataset's folder.
        files: Pictures relative to it.
        decode: Decode each to its end.

    Returns:
        One header a file, in their order.
    """
    with warnings.catch_warnings():  # about odd EXIF and large pictures; a filter is not a thread's own
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(_read, repeat(str(root)), files, repeat(decode), chunksize=64))


def _read(root: str, name: str, decode: bool) -> Header:
    size = 0
    try:
        with open(f"{root}/{name}", "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            tail = file.read()
            file.seek(0)
            with Image.open(file) as picture:
                height, width = picture.height, picture.width
                orientation = _orientation(picture) if "exif" in picture.info else 1
                if decode or END_MARKS.get(picture.format or "", b"\0none") not in tail:
                    picture.draft(None, (1, 1))  # an eighth of a JPEG's pixels, all its bytes
                    picture.load()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Header(missing=True)
    except UnidentifiedImageError:
        return Header(length=size, problem="is empty" if not size else "is no picture that can be read")
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them stumble over
        return Header(length=size, problem=str(error) or type(error).__name__)
    return Header(size, height, width, orientation, tail)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block turns nothing
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
