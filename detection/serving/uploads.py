"""Images that a client sends: limits, and decoding without trust."""

import tempfile
import warnings
from pathlib import Path

from PIL import UnidentifiedImageError
from torch import Tensor

from detection.data.loading.image_guard import TooLargeError, open_image
from detection.data.loading.image_io import read_image
from detection.errors import DataError


class TooManyPixelsError(DataError):
    """An image has more pixels than the server accepts."""


def decode_upload(name: str, content: bytes, max_pixels: int, *, upright: bool) -> Tensor:
    """Decode an uploaded image file to uint8 RGB [3, H, W].

    Args:
        name: File name of the client, for messages.
        content: The file.
        max_pixels: Maximum width times height.
        upright: Turn the image as its EXIF orientation says.

    Raises:
        DataError: The content is not an image, or is damaged.
        TooManyPixelsError: The image is too large.
    """
    if not content:
        raise DataError(f"{name} is empty")
    with tempfile.TemporaryDirectory(prefix="detection-upload-") as folder:
        path = Path(folder, "upload")
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a large image: the limit is ours
                with open_image(path) as image:
                    pixels = image.width * image.height
            if pixels > max_pixels:
                raise TooManyPixelsError(
                    f"{name} has {pixels:,} pixels, and {max_pixels:,} are accepted; send a smaller image"
                )
            return read_image(path, upright=upright)
        except TooLargeError as error:
            raise TooManyPixelsError(f"{name} {error}") from None
        except UnidentifiedImageError:
            raise DataError(f"{name} is no image: its content is of no known type") from None
        except TooManyPixelsError:
            raise
        except DataError as error:
            raise DataError(str(error).replace(str(path), name)) from None
        except Exception as error:  # decoders raise errors of any type for damaged files
            reason = str(error).replace(str(path), name).splitlines() or [type(error).__name__]
            raise DataError(f"{name} cannot be decoded as an image: {reason[0]}") from None
