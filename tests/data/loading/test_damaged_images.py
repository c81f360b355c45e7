"""500 damages of an image in each format: a reader may refuse the file, but never end the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import random, sys, tempfile, zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from detection.data.loading.image_io import decode, read_image
from detection.data.sources.image_headers import read_headers
from detection.errors import DataError

pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
rng = random.Random(0)


def with_checksums(content):
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


def damage(content, number, file_format):
    damaged = bytearray(content)
    if number % 5 == 4:
        return bytes(damaged[: rng.randrange(len(damaged))])
    for _ in range(rng.choice((1, 1, 4))):
        at = rng.randrange(len(damaged))
        damaged[at] = damaged[at] ^ 1 << rng.randrange(8) if number % 2 else rng.choice((0, 255, rng.randrange(256)))
    if file_format == "PNG" and number % 3 == 0:  # damage that no checksum shows
        with_checksums(damaged)
    return bytes(damaged)


for file_format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"):
    stream, read = BytesIO(), 0
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(stream, format=file_format, **({"exif": exif} if file_format == "JPEG" else {}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        for number in range(500):
            path.write_bytes(damage(stream.getvalue(), number, file_format))
            read_headers(Path(folder), ["a"], decode=number % 2 == 0)
            for reader in (lambda: read_image(path, upright=number % 4 < 2), lambda: decode(path)):
                try:
                    reader()
                    read += 1
                except DataError as error:
                    assert "\\n" not in str(error), error
    print(file_format, 500, read, flush=True)
"""


def test_no_damaged_image_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=900)
    if "unknown file extension" in done.stderr or "KeyError: 'AVIF'" in done.stderr:
        pytest.skip("Pillow was built without AVIF")
    formats = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, formats, done.stderr[-2000:])
    assert formats == ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"]
