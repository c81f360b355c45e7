"""Image files to RGB: PIL images without torch, and tensors by torchvision's decoders, twice as fast as PIL.

An image has the size of its index entry only after EXIF rotation if its annotation was made on the rotated
image; then it is rotated. 16-bit images keep their upper 8 bits, animations their first frame, and
transparency is dropped.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor


def image_files(source: Path, recursive: bool = False) -> list[Path]:
    """The image file itself, or the image files of a folder in order of name, without hidden ones.

    Args:
        source: An image file or a folder.
        recursive: Search the folder's sub-folders too.

    Raises:
        DataError: The path does not exist, or the folder holds no image files.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give an image file or a folder of images")
    files = sorted(
        path
        for path in (source.rglob("*") if recursive else source.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        hint = "" if recursive else "; --recursive searches its sub-folders"
        raise DataError(f"there are no image files in {source} ({', '.join(IMAGE_SUFFIXES)}){hint}")
    return files


def decode(path: str | Path, size: tuple[int, int] | None = None, *, upright: bool = False) -> Image.Image:
    """Decode an image file to an RGB PIL image.

    Args:
        path: The file.
        size: Expected height and width; None accepts any and does not rotate.
        upright: Rotate as the EXIF orientation says; for images without an index entry.

    Raises:
        DataError: The file is missing, cannot be decoded or has another size.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # odd EXIF data, large images: checked by `prepare`
            if upright or (size and opened.size != size[::-1]):
                ImageOps.exif_transpose(opened, in_place=True)
            image = to_rgb(opened)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro prepare` after moving images") from None
    except Exception as error:  # PIL's decoders raise exceptions of any type for a corrupt file
        raise DataError(f"{path} cannot be decoded as an image: {error}") from None
    if size and image.size != size[::-1]:
        actual, expected = (f"{width}x{height} pixels" for width, height in (image.size, size[::-1]))
        raise DataError(f"{path} has {actual}, but {expected} when prepared; run `dvc repro -f -s prepare`")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB; 16-bit images keep their upper 8 bits."""
    if image.mode.startswith("I;16"):  # PIL's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def read_image(path: str | Path, size: tuple[int, int] | None = None, *, upright: bool = False) -> "Tensor":
    """Decode an image file to Tensor[3, H, W], uint8, RGB; arguments and errors as for `decode`."""
    import torch
    from torchvision.io import ImageReadMode, decode_image, read_file

    try:
        with warnings.catch_warnings():  # deprecated since torchvision 0.29, still its fastest decoder
            warnings.simplefilter("ignore", DeprecationWarning)
            image: Tensor = decode_image(read_file(str(path)), mode=ImageReadMode.RGB, apply_exif_orientation=upright)
    except RuntimeError:
        image = _from_pil(decode(path, size, upright=upright))
    if image.dim() == 4:
        image = image[0]
    if image.dtype == torch.uint16:
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image if size in (None, tuple(image.shape[1:])) else _from_pil(decode(path, size))


def _from_pil(image: Image.Image) -> "Tensor":
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
