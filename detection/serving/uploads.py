"""Images that a client sends: reading a request, limits, and decoding without trust."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from torch import Tensor

from detection.data.loading.image_guard import TooLargeError, open_image
from detection.data.loading.image_io import read_image, register_heif
from detection.errors import DataError

MAX_FILES = 1000
"""Files of a multipart body that are counted; the number accepted is a limit of the server."""
MAX_NAME = 80
"""Characters of a file name in messages."""
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


class TooManyPixelsError(DataError):
    """An image has more pixels than the server accepts."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An image file of a request."""

    name: str
    """File name of the client."""
    content: bytes
    """The file."""

    @property
    def label(self) -> str:
        """Name for messages, on one line."""
        printable = "".join(char if char.isprintable() else "?" for char in self.name)
        return printable if len(printable) <= MAX_NAME else printable[: MAX_NAME - 1] + "…"


async def read_uploads(request: Request, max_images: int) -> list[Upload]:
    """Return the images of a request: a multipart form, or one image as the body.

    Raises:
        HTTPException: 400, 413 or 415, if it has none, too many, or another type.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [Upload("the body", await request.body())]
    if kind != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data with files named images, or an image with type image/jpeg")
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=16)
    except (MultiPartException, HTTPException) as error:
        message = getattr(error, "message", None) or getattr(error, "detail", "")
        raise HTTPException(400, f"the multipart body cannot be read: {message}") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "the request has no image; send files named images")
        if len(files) > max_images:
            raise HTTPException(413, f"{len(files)} images, and {max_images} are accepted per request")
        return [Upload(file.filename or f"image {i}", await file.read()) for i, file in enumerate(files)]
    finally:
        await form.close()


def count_pixels(upload: Upload, max_pixels: int) -> int:
    """Return width times height as the header of a file says, without decoding it.

    Raises:
        DataError: The content is not an image.
        TooManyPixelsError: The image is too large.
    """
    if not upload.content:
        raise DataError(f"{upload.label} is empty")
    if _is_heif(upload.content) and not register_heif():
        raise DataError(f"{upload.label} is a HEIF photo, which this server does not read; send a JPEG or PNG file")
    with _one_line(upload.label), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large image: the limit is ours
        with open_image(BytesIO(upload.content)) as image:
            pixels = image.width * image.height
    if pixels > max_pixels:
        raise TooManyPixelsError(
            f"{upload.label} has {pixels:,} pixels, and {max_pixels:,} are accepted; send a smaller image"
        )
    return pixels


def decode_upload(upload: Upload, *, upright: bool) -> Tensor:
    """Decode a file that `count_pixels` accepted to uint8 RGB [3, H, W].

    Args:
        upload: The file.
        upright: Turn the image as its EXIF orientation says.

    Raises:
        DataError: The file is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="detection-upload-") as folder:
        path = Path(folder, "upload")
        path.write_bytes(upload.content)
        with _one_line(upload.label, path):
            return read_image(path, upright=upright)


def _is_heif(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS


@contextmanager
def _one_line(label: str, path: Path = Path("upload")) -> Iterator[None]:
    """Turn the errors of decoders, of any type and length, into one line about the client's file."""
    try:
        yield
    except TooLargeError as error:
        raise TooManyPixelsError(f"{label} {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{label} is not an image of a known type") from None
    except DataError as error:
        raise DataError(str(error).replace(str(path), label).splitlines()[0]) from None
    except Exception as error:
        reason = str(error).replace(str(path), label).splitlines() or [type(error).__name__]
        raise DataError(f"{label} cannot be decoded as an image: {reason[0]}") from None
