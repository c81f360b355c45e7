"""What a dataset is made of, as hashes: the digest pins it, the listing betrays a changed picture.

Both are independent of where the data lies, and of the order in which files are read.
"""

import hashlib
from pathlib import Path

from detection.data.index import Index
from detection.errors import DataError


class Digest:
    """Collects what a dataset is made of; its hash does not depend on the order.

    digest = Digest()
    digest.text("VOC2007/Annotations/000005.xml", data)
    digest.entry("VOC2007/JPEGImages/000005.jpg", "73120 bytes")
    digest.hexdigest()
    """

    def __init__(self) -> None:
        self._entries: set[str] = set()

    def text(self, name: str, content: bytes) -> None:
        """Add a file with its whole content; `name` is relative to the dataset's folder."""
        self.entry(name, hashlib.blake2b(content, digest_size=16).hexdigest())

    def entry(self, name: str, value: str) -> None:
        """Add one named fact."""
        self._entries.add(f"{name}\0{value}")

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        content = "\n".join(sorted(self._entries)).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def sizes(root: Path, index: Index) -> dict[str, int]:
    """Size in bytes of each picture of a split, by its name relative to `root`.

    Raises:
        DataError: A picture is not there.
    """
    found: dict[str, int] = {}
    for raw in index.files:
        name = raw.decode()
        try:
            found[name] = (root / name).stat().st_size
        except OSError:
            raise DataError(
                f"{root / name} is missing; put it back, or take it out of the split and prepare again"
            ) from None
    return found


def listing_hash(listing: dict[str, int]) -> str:
    """One hash over the names and sizes of pictures."""
    digest = Digest()
    for name, size in listing.items():
        digest.entry(name, str(size))
    return digest.hexdigest()
