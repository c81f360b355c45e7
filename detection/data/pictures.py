"""Picture files to uint8 tensors: torchvision's decoders (twice as fast as PIL), PIL for the odd modes."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from detection.errors import DataError


def read_picture(path: str | Path) -> Tensor:
    """Decode a picture.

    Returns:
        Tensor[3, H, W], uint8, RGB, as stored (EXIF's rotation is not applied).

    Raises:
        DataError: The file is missing or cannot be decoded.
    """
    try:
        with warnings.catch_warnings():  # deprecated since torchvision 0.29, still its fastest decoder
            warnings.simplefilter("ignore", DeprecationWarning)
            picture: Tensor = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except RuntimeError:
        return _read_with_pil(path)
    return picture


def _read_with_pil(path: str | Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    except FileNotFoundError:
        raise DataError(f"{path} is not there; run dvc repro prepare after moving pictures") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from None
