"""A COCO instances file, decoded: its entries as objects, its annotations as arrays.

Typed structs let msgspec skip what is not asked for: polygons, which are most of the file, are never built.
"""

import codecs
import gc
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.sources.problems import Problems
from detection.errors import DataError

T = TypeVar("T")
FLAGS = ("iscrowd", "ignore")
CHUNK = 1 << 16
"""Annotations that become arrays at a time."""


class Image(msgspec.Struct, gc=False):
    """One picture."""

    id: int
    file_name: str
    height: int = 0
    width: int = 0


class Box(msgspec.Struct, gc=False, array_like=True, forbid_unknown_fields=True):
    """`x, y, width, height` in pixels, 0-based."""

    x: float
    y: float
    width: float
    height: float


class Annotation(msgspec.Struct, gc=False):
    """One object. Numbers are floats, so that each annotation takes the same bytes in `Columns.of`."""

    image_id: float
    category_id: float
    bbox: Box
    area: float | None = -1.0
    """-1 or null: not given."""
    iscrowd: Literal[0, 1] | bool = 0
    ignore: Literal[0, 1] | bool = 0


class Category(msgspec.Struct):
    """One class."""

    id: int
    name: str


class Instances(msgspec.Struct):
    """An instances file."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Loose(msgspec.Struct):
    """The same, its entries not yet looked at: to name those that are broken."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


def load(path: Path, where: str, faults: Problems) -> Instances:
    """Decode a file, mapped into memory and not copied.

    Args:
        path: The file.
        where: Its name relative to the dataset's folder, for faults.
        faults: Gets the entries that cannot be decoded; they are left out.

    Raises:
        DataError: It is no JSON, or has no lists of images, annotations and categories.
    """
    with open(path, "rb") as file, _collector_off():
        if not path.stat().st_size:
            raise DataError(f"{path}: not a COCO instances file: it is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        marked = mapped[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8  # as Windows' own programs write it
        content = memoryview(mapped)[len(codecs.BOM_UTF8) if marked else 0 :]
        try:
            return msgspec.json.decode(content, type=Instances)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _load_loosely(bytes(content), path, where, faults)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without Python's cycle collector: nothing decoded has cycles, and looking for them takes a sixth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load_loosely(content: bytes, path: Path, where: str, faults: Problems) -> Instances:
    """Decode entry by entry, and note those that cannot be."""
    try:
        loose = msgspec.json.decode(content, type=Loose)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a COCO instances file: {error}; mend the file") from None

    def entries(name: str, kind: type[T]) -> list[T]:
        found = []
        for i, raw in enumerate(getattr(loose, name)):
            try:
                found.append(msgspec.json.decode(raw, type=kind))
            except msgspec.ValidationError as error:
                faults.add("broken_annotation", f"{where}: {name}[{i}]", str(error).replace("`", ""))
        return found

    return Instances(
        images=entries("images", Image),
        annotations=entries("annotations", Annotation),
        categories=entries("categories", Category),
    )


@dataclass(slots=True)
class Columns:
    """The annotations of a file as arrays, a row each."""

    image_id: NDArray[np.float64]
    category_id: NDArray[np.float64]
    bbox: NDArray[np.float64]
    """[T, 4]."""
    area: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]

    @classmethod
    def of(cls, annotations: Sequence[Annotation]) -> "Columns":
        """Turn objects into columns.

        Written as MessagePack, every annotation takes the same bytes (its keys are fixed, its numbers are
        doubles, its flags a byte), so what msgspec writes in one go is an array already. Asking each object
        for each number takes three times as long.
        """
        layout, encode = _layout(), msgspec.msgpack.Encoder().encode
        count = len(annotations)
        columns: dict[str, NDArray[Any]] = {name: np.empty(count) for name in Annotation.__struct_fields__}
        columns |= {name: np.empty(count, dtype=np.bool_) for name in FLAGS}
        columns["bbox"] = np.empty((count, 4))
        for start in range(0, count, CHUNK):
            part = annotations[start : start + CHUNK]
            stop = start + len(part)
            content = memoryview(encode(part))
            if len(content) - len(part) * layout.itemsize not in (1, 3, 5):  # an array's head
                for one in part:
                    one.area = -1.0 if one.area is None else one.area
                content = memoryview(encode(part))
            head = len(content) - len(part) * layout.itemsize
            rows = np.frombuffer(content, layout, count=len(part), offset=head)
            for name, column in columns.items():
                if name == "bbox":
                    for side in range(4):
                        column[start:stop, side] = rows[f"bbox{side}"]
                else:  # a flag's last bit: MessagePack writes 0 and 1 as such, false and true as c2 and c3
                    column[start:stop] = rows[name] & 1 if name in FLAGS else rows[name]
        return cls(**columns)


def _layout() -> np.dtype[np.void]:
    """Where the numbers of an `Annotation` lie in its MessagePack: a type byte before each, keys between."""
    names, formats, offsets, place = [], [], [], 1
    for name in Annotation.__struct_fields__:
        place += 1 + len(name) + (name == "bbox")  # a key; the head of an array
        for part in [f"bbox{side}" for side in range(4)] if name == "bbox" else [name]:
            flag = name in FLAGS
            names.append(part)
            formats.append("u1" if flag else ">f8")
            offsets.append(place if flag else place + 1)
            place += 1 if flag else 9
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": place})


def content_hash(instances: Instances, columns: Columns) -> str:
    """A hash of what was read: a tenth of the file, whose polygons nobody looks at."""
    names = [image.file_name for image in instances.images]
    names += [f"{category.id}\0{category.name}" for category in instances.categories]
    content = blake2b("\n".join(names).encode(), digest_size=16)
    numbers = [side for image in instances.images for side in (image.id, image.height, image.width)]
    content.update(np.array(numbers, dtype="<i8").tobytes())
    for column in (columns.image_id, columns.category_id):
        content.update(column.astype("<i8").tobytes())
    for column in (columns.bbox, columns.area):
        content.update(column.astype("<f4").tobytes())
    for flags in (columns.iscrowd, columns.ignore):
        content.update(flags.tobytes())
    return content.hexdigest()
