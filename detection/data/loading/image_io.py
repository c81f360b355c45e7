"""Image files to RGB: PIL images without torch, and tensors.

JPEG is decoded by torchvision, twice as fast as PIL; other formats by PIL, since torchvision's PNG decoder ends the
process on a damaged file.

An image has the size of its index entry only after EXIF rotation if its annotation was made on the rotated
image; then it is rotated. 16-bit images keep their upper 8 bits, animations their first frame, and
transparency is dropped. Values of 32 bits, whose range no file states, are refused. HEIF photos need the package
pillow-heif.
"""

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from detection.data.loading.image_guard import check_dtype, check_png, open_image
from detection.errors import DataError
from detection.files import HEIF_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

JPEG_START = [0xFF, 0xD8, 0xFF]


HEIF_HINT = "is a HEIF photo, which Pillow reads with a plugin: pip install pillow-heif"


@cache
def register_heif() -> bool:
    """Let Pillow read HEIF files; return False if pillow-heif is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_unreadable_heif(path: str | Path) -> bool:
    """Return True for a HEIF file by its name if pillow-heif is not installed."""
    return str(path).lower().endswith(HEIF_SUFFIXES) and not register_heif()


def decode(path: str | Path, size: tuple[int, int] | None = None, *, upright: bool = False) -> Image.Image:
    """Decode an image file to an RGB PIL image.

    Args:
        path: The file.
        size: Expected height and width; None accepts any and does not rotate.
        upright: Rotate as the EXIF orientation says; for images without an index entry.

    Raises:
        DataError: The file is missing, cannot be decoded or has another size.
    """
    if is_unreadable_heif(path):
        raise DataError(f"{path} {HEIF_HINT}")
    try:
        with warnings.catch_warnings(), open_image(path) as opened:
            warnings.simplefilter("ignore")  # odd EXIF data, large images: checked by `prepare`
            if opened.format == "PNG":
                check_png(Path(path).read_bytes())
            if upright or (size and opened.size != size[::-1]):
                ImageOps.exif_transpose(opened, in_place=True)
            image = to_rgb(opened)
    except FileNotFoundError:
        hint = "; run `dvc repro prepare` after moving images" if size else ""
        raise DataError(f"{path} does not exist{hint}") from None
    except Exception as error:  # PIL's decoders raise exceptions of any type for a corrupt file
        raise DataError(f"{path} cannot be decoded as an image: {_reason(path, error)}") from None
    if size and image.size != size[::-1]:
        actual, expected = (f"{width}x{height} pixels" for width, height in (image.size, size[::-1]))
        raise DataError(f"{path} has {actual}, but {expected} when prepared; run `dvc repro -f -s prepare`")
    return image


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message repeats the path
        return "its content is of no known type" if Path(path).stat().st_size else "it is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB; 16-bit images keep their upper 8 bits.

    Raises:
        ValueError: The values have 32 bits, as float or as integers above 16 bits.
    """
    check_dtype(image)
    if (image.mode == "I" and _has_16_bits(image)) or image.mode.startswith("I;16"):  # PIL's conversion clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    """Return True for a PGM file of 16 bits and other images with such values.

    Raises:
        ValueError: Values have more than 16 bits.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ValueError("its values have 32 bits; convert it to 8 or 16 bits")
    return image.format == "PPM" or high > np.iinfo(np.uint8).max


def read_image(path: str | Path, size: tuple[int, int] | None = None, *, upright: bool = False) -> "Tensor":
    """Decode an image file to Tensor[3, H, W], uint8, RGB; arguments and errors as for `decode`."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    try:
        with warnings.catch_warnings():  # deprecated since torchvision 0.29, still its fastest decoder
            warnings.simplefilter("ignore")
            content = read_file(str(path))
            if content[: len(JPEG_START)].tolist() != JPEG_START:
                return _from_pil(decode(path, size, upright=upright))
            if size is None:
                with open_image(path):  # refuses a size that no memory holds
                    pass
            image: Tensor = decode_image(content, mode=ImageReadMode.RGB, apply_exif_orientation=upright)
    except (RuntimeError, OSError, ValueError):  # Pillow reads some files that torchvision refuses
        image = _from_pil(decode(path, size, upright=upright))
    return image if size in (None, tuple(image.shape[1:])) else _from_pil(decode(path, size, upright=upright))


def _from_pil(image: Image.Image) -> "Tensor":
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
