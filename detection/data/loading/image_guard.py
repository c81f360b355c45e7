"""Checks of an image file before its pixels are decoded: number and type of pixels, and the checksums of a PNG.

torchvision's PNG decoder aborts the process on damaged data, and decoders allocate the size that a header claims.
Pillow does not verify the checksums of a PNG's pixels.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

MAX_PIXELS = 2**28
"""Largest width times height: 0.8 GB as RGB."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TOO_LARGE = f"more than the {MAX_PIXELS:,} that are read; cut it into smaller images"


class TooLargeError(ValueError):
    """An image has more pixels than are read."""


@contextmanager
def open_image(file: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image with Pillow, without decoding it.

    Raises:
        TooLargeError: The image is too large.
        ValueError: Its pixels have no fixed range.
    """
    if Image.MAX_IMAGE_PIXELS is not None and MAX_PIXELS // 2 > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice this number
    try:
        opened = Image.open(file)
    except Image.DecompressionBombError:
        raise TooLargeError(f"has too many pixels, {TOO_LARGE}") from None
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise TooLargeError(f"has {image.width}x{image.height} pixels, {TOO_LARGE}")
        check_dtype(image)
        yield image


def check_dtype(image: Image.Image) -> None:
    """Check that the pixels have a known range.

    Raises:
        ValueError: The pixels are 32-bit floats.
    """
    if image.mode == "F":
        raise ValueError("has 32-bit floats of unknown range as pixels; convert it to 8 or 16 bits per channel")


def check_png(content: bytes) -> None:
    """Check the chunks and checksums of a PNG file.

    Raises:
        ValueError: The file is truncated or damaged; names the first damaged chunk.
    """
    at, view = len(PNG_SIGNATURE), memoryview(content)
    while at + 12 <= len(content):
        name = content[at + 4 : at + 8]
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        critical = name[:1].isupper()
        if critical and zlib.crc32(view[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"is damaged: wrong checksum of {name.decode(errors='replace')!r} at byte {at}")
        if name == b"IEND":
            return
        at = end + 4
    raise ValueError("is damaged or truncated: it has no end marker (IEND)")
