"""Reading image files of all formats and modes, and reading their headers."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detection.data.loading import image_io
from detection.data.loading.image_io import read_image
from detection.data.sources.image_headers import read_headers
from detection.errors import DataError

PIXELS = np.zeros((40, 60, 3), dtype=np.uint8)
PIXELS[:, :30] = (200, 40, 40)
PIXELS[:20, 30:] = (40, 200, 40)
PIXELS[20:, 30:] = (30, 60, 220)
IMAGE = Image.fromarray(PIXELS)
GRAY = np.asarray(IMAGE.convert("L"))
GRAY_RGB = np.repeat(GRAY[:, :, None], 3, axis=2)
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}


def png16() -> bytes:
    """A 16-bit RGB PNG, which PIL does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in PIXELS)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, **options)  # type: ignore[arg-type]
    return content.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


TRANSLUCENT = IMAGE.convert("RGBA")
TRANSLUCENT.putalpha(100)
WIDE = Image.fromarray(GRAY.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("content", "expected", "tolerance"),
    [
        pytest.param(saved(IMAGE, **JPEG), PIXELS, 12, id="jpeg"),
        pytest.param(saved(IMAGE, progressive=True, **JPEG), PIXELS, 12, id="progressive jpeg"),
        pytest.param(saved(IMAGE.convert("L"), format="JPEG", quality=95), GRAY_RGB, 12, id="gray jpeg"),
        pytest.param(saved(IMAGE.convert("CMYK"), **JPEG), PIXELS, 12, id="cmyk jpeg"),
        pytest.param(saved(IMAGE.convert("L"), format="PNG"), GRAY_RGB, 0, id="gray png"),
        pytest.param(saved(IMAGE.convert("LA"), format="PNG"), GRAY_RGB, 0, id="gray png with alpha"),
        pytest.param(saved(IMAGE.quantize(), format="PNG"), PIXELS, 0, id="palette png"),
        pytest.param(saved(IMAGE.quantize(), format="PNG", transparency=0), PIXELS, 0, id="clear palette"),
        pytest.param(saved(TRANSLUCENT, format="PNG"), PIXELS, 0, id="png with alpha"),
        pytest.param(saved(WIDE, format="PNG"), GRAY_RGB, 0, id="16-bit gray png"),
        pytest.param(saved(WIDE, format="TIFF"), GRAY_RGB, 0, id="16-bit gray tiff"),
        pytest.param(png16(), PIXELS, 0, id="16-bit png"),
        pytest.param(b"P5 60 40 65535\n" + WIDE.tobytes("raw", "I;16B"), GRAY_RGB, 0, id="16-bit pgm"),
        pytest.param(saved(IMAGE, format="TIFF"), PIXELS, 0, id="tiff"),
        pytest.param(saved(IMAGE, format="AVIF", quality=95, subsampling="4:4:4"), PIXELS, 12, id="avif"),
        pytest.param(saved(IMAGE, format="BMP"), PIXELS, 0, id="bmp"),
        pytest.param(saved(IMAGE, format="WEBP", lossless=True), PIXELS, 0, id="webp"),
        pytest.param(saved(IMAGE.quantize(), format="GIF"), PIXELS, 0, id="gif"),
        pytest.param(
            saved(IMAGE, format="GIF", save_all=True, append_images=[IMAGE.rotate(180)]), PIXELS, 0, id="animated gif"
        ),
        pytest.param(saved(IMAGE.crop((0, 0, 1, 1)), format="PNG"), PIXELS[:1, :1], 0, id="one pixel, png"),
        pytest.param(saved(IMAGE.crop((0, 0, 1, 1)), **JPEG), PIXELS[:1, :1], 12, id="one pixel, jpeg"),
        pytest.param(saved(IMAGE, exif=exif(3), **JPEG), PIXELS, 12, id="exif: upside down, as stored"),
    ],
)
def test_every_mode_is_converted_to_rgb(content: bytes, expected: np.ndarray, tolerance: int, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(content)
    read = read_image(tmp_path / "image", expected.shape[:2])
    assert read.dtype == torch.uint8
    pixels = read.permute(1, 2, 0).numpy().astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance
    (header,) = read_headers(tmp_path, ["image"], decode=True)
    assert (header.height, header.width, header.problem) == (*expected.shape[:2], "")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_rotation_if_the_annotation_has_the_rotated_size(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(IMAGE, exif=exif(orientation), **JPEG))
    stored = read_image(path)
    assert torch.equal(read_image(path, (40, 60)), stored)
    rotated = read_image(path, (60, 40))
    assert rotated.shape == (3, 60, 40)
    straight = {
        5: stored.transpose(1, 2),
        6: stored.rot90(-1, (1, 2)),
        7: stored.transpose(1, 2).flip(1, 2),
        8: stored.rot90(1, (1, 2)),
    }[orientation]
    assert (rotated.int() - straight.int()).abs().max() <= 6
    with pytest.raises(DataError, match=r"a\.jpg has .* pixels, but 50x50 pixels"):
        read_image(path, (50, 50))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"hello", "is not an image", id="text"),
        pytest.param(saved(NOISE, format="JPEG")[:-2000], "truncated", id="half a jpeg"),
        pytest.param(saved(NOISE, format="PNG")[:-2000], "truncated", id="half a png"),
        pytest.param(saved(NOISE, format="PNG")[:20], "", id="a png's first bytes"),
        pytest.param(saved(NOISE, format="WEBP")[:-2000], "", id="half a webp"),
        pytest.param(saved(NOISE, format="BMP")[:-2000], "truncated", id="half a bmp"),
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_broken_files_are_found_by_header_and_by_decoding(
    content: bytes, problem: str, decode: bool, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(content)
    (header,) = read_headers(tmp_path, ["a"], decode)
    assert header.problem
    assert problem in header.problem
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path / "a")


def test_a_jpeg_with_trailing_bytes_is_complete(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(saved(NOISE, format="JPEG") + b"\0" * 500)
    assert read_headers(tmp_path, ["a"], decode=False)[0].problem == ""
    assert read_image(tmp_path / "a").shape == (3, 80, 90)


def test_a_corrupt_png_is_found_by_its_checksums(tmp_path: Path) -> None:
    content = bytearray(saved(NOISE, format="PNG"))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a").write_bytes(content)
    for decoded in (False, True):
        assert "wrong checksum of 'IDAT'" in read_headers(tmp_path, ["a"], decode=decoded)[0].problem
    with pytest.raises(DataError, match="a cannot be decoded as an image: is damaged: wrong checksum"):
        read_image(tmp_path / "a")


def test_pixels_without_a_fixed_range_are_refused(tmp_path: Path) -> None:
    Image.new("F", (9, 8)).save(tmp_path / "a.tif")
    (header,) = read_headers(tmp_path, ["a.tif"], decode=False)
    assert header.problem == "has 32-bit floats of unknown range as pixels; convert it to 8 or 16 bits per channel"
    for read in (read_image, image_io.decode):
        with pytest.raises(DataError, match=r"a\.tif cannot be decoded as an image: has 32-bit floats"):
            read(tmp_path / "a.tif")


def resized(content: bytes, width: int, height: int) -> bytes:
    """Make a file claim another size."""
    if content.startswith(b"\x89PNG"):
        chunk = content[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
        return content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]
    if content.startswith(b"GIF"):
        return content[:6] + width.to_bytes(2, "little") + height.to_bytes(2, "little") + content[10:]
    start = content.index(b"\xff\xc0")
    return content[: start + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[start + 9 :]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF"])
def test_a_small_file_that_claims_a_huge_size_is_refused(file_format: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(resized(saved(NOISE, format=file_format), 65_000, 65_000))
    (header,) = read_headers(tmp_path, ["a"], decode=False)
    assert header.problem.startswith("has too many pixels, more than the 268,435,456 that are read")
    for read in (read_image, image_io.decode):
        with pytest.raises(DataError, match="has too many pixels"):
            read(tmp_path / "a")


def test_a_picture_of_more_pixels_than_pillow_allows_is_read(tmp_path: Path) -> None:
    Image.new("1", (15_000, 12_000)).save(tmp_path / "a.png")
    (header,) = read_headers(tmp_path, ["a.png"], decode=False)
    assert (header.height, header.width, header.problem) == (12_000, 15_000, "")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(Image.fromarray(GRAY.astype(np.float32) / 255), "32-bit floats", id="float"),
        pytest.param(Image.fromarray(GRAY.astype(np.int32) * 2**20), "32 bits", id="int"),
    ],
)
def test_values_of_unknown_range_are_refused(image: Image.Image, message: str, tmp_path: Path) -> None:
    image.save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=rf"a\.tiff .*{message}"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize(("content", "message"), [(b"", "it is empty"), (b"hello", "of no known type")])
def test_the_reason_does_not_repeat_the_path(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_image(tmp_path / "a.jpg")
    assert str(error.value).count("a.jpg") == 1


def test_heif_photos_need_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.HEIC").write_bytes(saved(IMAGE, format="PNG"))  # the plugin is faked: any type that Pillow reads
    image_io.register_heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a\.HEIC.*pip install pillow-heif"):
        image_io.decode(tmp_path / "a.HEIC")
    assert "pip install pillow-heif" in read_headers(tmp_path, ["a.HEIC"], decode=False)[0].problem
    image_io.register_heif.cache_clear()
    registered: list[bool] = []
    plugin = SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    for _ in range(2):
        assert image_io.decode(tmp_path / "a.HEIC").size == (60, 40)
    assert registered == [True]
    assert read_headers(tmp_path, ["a.HEIC"], decode=False)[0].problem == ""
    image_io.register_heif.cache_clear()


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir])
def test_missing_files(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a")
    assert read_headers(tmp_path, ["a"], decode=False)[0].missing
