"""Picture files to uint8 tensors: torchvision's decoders (twice as fast as PIL), PIL for the odd ones."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image, read_file

from detection.data.decode import decode


def read_picture(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
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
