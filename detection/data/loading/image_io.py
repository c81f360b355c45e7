"""Picture files by PIL alone: any mode as RGB, and turned where its annotation means it turned.

Picture files to uint8 tensors: torchvision's decoders (twice as fast as PIL), PIL for the odd ones.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from detection.errors import DataError


def decode(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture, the first frame where it has several.

    Args:
        path: The file.
        size: Height and width that the dataset's index has. A picture that has them only when EXIF's rotation
            is applied was annotated turned, and is turned; None: as stored.

    Returns:
        An RGB picture. 16-bit grey keeps its upper 8 bits, transparency is dropped.

    Raises:
        DataError: The file is missing, cannot be decoded or has another size.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")  # odd EXIF, large pictures: `prepare` has looked at them
            if size and opened.size != size[::-1]:
                ImageOps.exif_transpose(opened, in_place=True)
            picture = _to_rgb(opened)
    except FileNotFoundError:
        raise DataError(f"{path} is not there; run dvc repro prepare after moving pictures") from None
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them stumble over
        raise DataError(f"{path} cannot be read as a picture: {error}") from None
    if size and picture.size != size[::-1]:
        found, expected = (f"{w}x{h} pixels" for w, h in (picture.size, size[::-1]))
        raise DataError(
            f"{path} has {found}, and was prepared with {expected}; run `dvc repro -f -s prepare`"
        )
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # PIL's own conversion cuts at 255, and leaves a white sheet
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a picture.

    Args:
        path: The file.
        size: Height and width that the dataset's index has. A picture that has them only when EXIF's rotation
            is applied was annotated turned, and is turned; None: as stored.

    Returns:
        Tensor[3, H, W], uint8, RGB. 16-bit pictures keep their upper 8 bits, animations their first frame,
        transparency is dropped.

    Raises:
        DataError: The file is missing, cannot be decoded or has another size.
    """
    try:
        with warnings.catch_warnings():  # deprecated since torchvision 0.29, still its fastest decoder
            warnings.simplefilter("ignore", DeprecationWarning)
            picture: Tensor = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except RuntimeError:
        return _by_pil(path, size)
    if picture.dim() == 4:
        picture = picture[0]
    if picture.dtype == torch.uint16:
        picture = (picture.to(torch.int32) >> 8).to(torch.uint8)
    return picture if size in (None, tuple(picture.shape[1:])) else _by_pil(path, size)


def _by_pil(path: str | Path, size: tuple[int, int] | None) -> Tensor:
    return torch.from_numpy(np.array(decode(path, size))).permute(2, 0, 1).contiguous()
