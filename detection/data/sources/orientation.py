"""Decision for a whole dataset: were its images annotated as stored, or upright as their EXIF orientation says?

The annotated size tells it of images that the orientation turns on their side; images that are upside down, mirrored or
square were annotated with the same tool, and follow them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detection.data.loading.index import Index

if TYPE_CHECKING:
    from detection.data.sources.image_headers import Header

TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""
Exif = Literal["auto", "upright", "stored"]


@dataclass(frozen=True, slots=True)
class Orientation:
    """Reading of the images that have an EXIF orientation."""

    upright: bool = True
    """Turn those whose annotated size does not tell."""
    by_size: bool = True
    """Read those whose annotated size tells by their own."""
    line: str = ""
    """Description for the log; empty if no image has an orientation."""

    def turns(self, annotated: tuple[int, int], header: "Header") -> bool:
        """Return True if an image is to be turned; `annotated` is its height and width, 0 if unknown."""
        if header.orientation == 1:
            return False
        by_size = upright_by_size(annotated, header) if self.by_size else None
        return self.upright if by_size is None else by_size

    def size(self, annotated: tuple[int, int], header: "Header") -> tuple[int, int]:
        """Height and width as the image is read."""
        transposed = header.orientation in TRANSPOSING_ORIENTATIONS and self.turns(annotated, header)
        return (header.width, header.height) if transposed else (header.height, header.width)


def upright_by_size(annotated: tuple[int, int], header: "Header") -> bool | None:
    """Return True if an image was annotated upright, False if as stored, None if its size does not tell."""
    stored = header.height, header.width
    if header.orientation not in TRANSPOSING_ORIENTATIONS or stored == stored[::-1]:
        return None
    return {stored[::-1]: True, stored: False}.get(annotated)


def decide(splits: Iterable[Index], headers: Mapping[str, "Header"], setting: Exif) -> Orientation:
    """Decide how the images of a dataset are read.

    Args:
        splits: All splits, with annotated sizes, 0 if unknown.
        headers: Header of each image by name.
        setting: `exif` of the dataset.
    """
    by_size, count = [], 0
    for index in splits:
        for name, (height, width) in zip(index.files.tolist(), index.sizes.tolist(), strict=True):
            header = headers[name.decode()]
            count += header.orientation != 1
            by_size.append(upright_by_size((height, width), header))
    if not count:
        return Orientation()
    turned, stored = by_size.count(True), by_size.count(False)
    head = f"{count} images have an EXIF orientation: "
    if setting != "auto":
        how = "turned upright" if setting == "upright" else "read as stored"
        return Orientation(setting == "upright", False, f"{head}{how} (exif: {setting})")
    upright = turned >= stored
    how, other = ("turned upright", "stored") if upright else ("read as stored", "upright")
    if turned and stored:
        rest = f"the other {count - turned - stored} are {how}" if count > turned + stored else "each is read so"
        line = f"{head}{turned} were annotated upright and {stored} as stored, by their sizes; {rest}"
    elif turned or stored:
        line = f"{head}all are {how}, as the sizes of {turned + stored} annotations tell"
    else:
        line = f"{head}{how}, as labeling tools show them, since no annotated size tells; `exif: {other}` changes it"
    return Orientation(upright, True, line)
