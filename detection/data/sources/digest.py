"""Hashes of raw data: the digest that `params.yaml` can pin, and the listing that detects changed images.

Both are independent of the location of the data and of the order in which files are read.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from detection.errors import DataError

if TYPE_CHECKING:
    from detection.data.loading.index import Index


class Digest:
    """Order-independent hash over named entries.

    digest = Digest()
    digest.file("VOC2007/Annotations/000005.xml", content)
    digest.entry("VOC2007/JPEGImages/000005.jpg", "73120")
    digest.hexdigest()
    """

    def __init__(self) -> None:
        self._entries: set[str] = set()

    def file(self, name: str, content: bytes) -> None:
        """Add a file with its content; `name` is relative to the dataset folder."""
        self.entry(name, hashlib.blake2b(content, digest_size=16).hexdigest())

    def entry(self, name: str, value: str) -> None:
        """Add a value under a name."""
        self._entries.add(f"{name}\0{value}")

    def hexdigest(self) -> str:
        """Return the hash as 32 hexadecimal digits."""
        content = "\n".join(sorted(self._entries)).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def image_sizes(root: Path, index: "Index") -> dict[str, int]:
    """Return the file size in bytes of each image of a split, by name relative to `root`.

    Raises:
        DataError: An image is missing.
    """
    sizes: dict[str, int] = {}
    for name in (raw.decode() for raw in index.files.tolist()):
        try:
            sizes[name] = (root / name).stat().st_size
        except OSError:
            raise DataError(
                f"{root / name} is missing; restore it, or remove it from the split and prepare again"
            ) from None
    return sizes


def listing_hash(listing: dict[str, int]) -> str:
    """Hash the names and file sizes of images."""
    digest = Digest()
    for name, size in listing.items():
        digest.entry(name, str(size))
    return digest.hexdigest()
