"""Checks of a dataset that was read: pictures against annotations, boxes, and split against split.

Each notes what it finds in `Problems`, and does what `prepare.checks` says: at `error` it goes on as with
`drop`, so that the whole list comes together.
"""

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.data.sources.image_headers import Header
from detection.data.sources.problems import Problems
from detection.ops import boxes as box_ops

REACH = 1.0
"""Pixels by which a box may reach out of its picture: annotators and scaling round."""
THINNEST, LONGEST = 1.0, 100.0
"""Pixels of the shorter side, and its ratio to the longer, beyond which a box is absurd."""
TRANSPOSED = (5, 6, 7, 8)
Headers = dict[str, Header]
"""What was found of each picture, by its name relative to the dataset's folder."""


def check_images(index: Index, headers: Headers, faults: Problems) -> Index:
    """Leave out pictures that are missing or broken, and settle the size of the others.

    Pictures are read as stored; where the annotation has the size that EXIF's rotation gives, whoever
    annotated saw the picture turned, and it is turned on reading (`pictures.read_picture`).
    """
    sizes = index.sizes.copy()
    kept = np.ones(len(index), dtype=np.bool_)
    for row, raw in enumerate(index.files.tolist()):
        name = raw.decode()
        header = headers[name]
        given, stored = (int(sizes[row, 0]), int(sizes[row, 1])), (header.height, header.width)
        if header.missing:
            faults.add("missing_image", name, "is not there")
            kept[row] = False
        elif header.problem:
            faults.add("broken_image", name, header.problem)
            kept[row] = False
        elif given == stored and header.orientation == 1:
            continue
        else:
            sizes[row], kept[row] = _settle_size(name, given, header, faults)
    index = replace(index, sizes=sizes)
    return index if kept.all() else index.select(np.flatnonzero(kept))


def _settle_size(
    name: str, given: tuple[int, int], header: Header, faults: Problems
) -> tuple[tuple[int, int], bool]:
    """Height and width that count, and whether the picture stays."""
    stored = (header.height, header.width)
    turned = header.orientation in TRANSPOSED and given == stored[::-1] != stored
    kept = True
    if header.orientation != 1:
        how = "its annotation has the turned size: turned on reading" if turned else "read as stored"
        faults.add("exif_rotation", name, f"orientation {header.orientation}; {how}")
        kept = faults.action("exif_rotation") == "keep"
    if turned:
        return given, kept
    if given not in ((0, 0), stored):
        detail = f"has {stored[1]}x{stored[0]} pixels, its annotation says {given[1]}x{given[0]}"
        faults.add("image_size_mismatch", name, detail)
        kept &= faults.action("image_size_mismatch") == "keep"
    return stored, kept


def check_boxes(index: Index, classes: tuple[str, ...], faults: Problems) -> Index:
    """Clip or leave out boxes that reach out of their picture; look for absurd and repeated ones."""
    owners = index.image_rows()
    left = np.ones(len(owners), dtype=np.bool_)

    def note(kind: str, bad: NDArray[np.bool_], describe: Callable[[int], str]) -> None:
        for box in np.flatnonzero(bad).tolist():
            name = index.files[owners[box]].decode()
            faults.add(
                kind, name, f"{classes[index.labels[box]]} {_corners(index.boxes[box])}, {describe(box)}"
            )
        if faults.action(kind) in ("drop", "error"):
            left[bad] = False

    heights, widths = index.sizes[owners].T
    borders = np.stack([np.zeros_like(widths), np.zeros_like(heights), widths, heights], axis=1)
    x1, y1, x2, y2 = index.boxes.T
    out = (x1 < -REACH) | (y1 < -REACH) | (x2 > widths + REACH) | (y2 > heights + REACH)
    note("box_outside_image", out, lambda box: f"in a picture of {widths[box]}x{heights[box]}")
    boxes, areas = index.boxes, index.areas
    if faults.action("box_outside_image") == "clip" and out.any():
        boxes, areas = boxes.copy(), areas.copy()
        boxes[out] = np.clip(boxes[out], borders[out][:, [0, 1, 0, 1]], borders[out][:, [2, 3, 2, 3]])
        areas[out] = np.minimum(areas[out], box_ops.areas(boxes[out]))
        left &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    sides = boxes[:, 2:] - boxes[:, :2]
    short, long = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0)
    absurd = left & ((short < THINNEST) | (long > LONGEST * short))
    note("degenerate_box", absurd, lambda box: f"{sides[box, 0]:g} wide and {sides[box, 1]:g} high")
    note("duplicate_object", left & _repeated(owners, index), lambda box: "annotated before")
    index = replace(index, boxes=boxes, areas=areas)
    return index if left.all() else index.keep_boxes(left)


def _corners(box: NDArray[np.float32]) -> str:
    return "[" + ", ".join(f"{side:g}" for side in box.tolist()) + "]"


def _repeated(owners: NDArray[np.int64], index: Index) -> NDArray[np.bool_]:
    """[T], whether an earlier object of the picture has the same class and box: by 64 bits mixed of these."""
    sides = index.boxes.astype(np.float32).view(np.uint32).astype(np.uint64)
    key = owners.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + index.labels.astype(np.uint64)
    for side in range(4):
        key = (key ^ sides[:, side]) * np.uint64(0xFF51AFD7ED558CCD)
        key ^= key >> np.uint64(32)
    repeated = np.ones(len(owners), dtype=np.bool_)
    repeated[np.unique(key, return_index=True)[1]] = False
    return repeated


def check_splits(
    root: Path, splits: dict[str, Index], headers: Headers, faults: Problems
) -> dict[str, Index]:
    """Look for pictures that two splits share, byte for byte, whatever their names.

    Only files of the same size with the same last bytes are compared whole.
    """
    alike: dict[tuple[int, bytes], list[tuple[str, str]]] = {}
    for split in ("test", "val", "train"):
        for raw in splits[split].files.tolist():
            header = headers[name := raw.decode()]
            alike.setdefault((header.length, header.tail), []).append((split, name))
    leaked: dict[str, set[str]] = {split: set() for split in splits}
    for group in alike.values():
        if len({split for split, _ in group}) == 1:
            continue
        first: dict[bytes, tuple[str, str]] = {}
        for split, name in group:
            owner, other = first.setdefault(_content(root / name), (split, name))
            if owner != split:
                same = "" if other == name else f" as {other}"
                faults.add("split_leak", name, f"of {split} is also in {owner}{same}")
                leaked[split].add(name)
    if faults.action("split_leak") == "keep":
        return splits
    return {split: _without(index, leaked[split]) for split, index in splits.items()}


def _content(path: Path) -> bytes:
    return blake2b(path.read_bytes(), digest_size=16).digest()


def _without(index: Index, names: set[str]) -> Index:
    if not names:
        return index
    kept = [row for row, raw in enumerate(index.files.tolist()) if raw.decode() not in names]
    return index.select(np.array(kept, dtype=np.int64))
