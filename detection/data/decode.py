"""Picture files by PIL alone: any mode as RGB, and turned where its annotation means it turned."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
