"""The dataset's card: what is in it, as numbers that can be compared with another dataset's."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.data.shapes.generator import MARKER
from detection.data.sources.dataset import RawDataset
from detection.ops import boxes as box_ops
from detection.params.datasets import Dataset

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
FOLDER = "reports/dataset"


def describe(raw: RawDataset, dataset: Dataset) -> dict[str, Any]:
    """The card as plain values.

    Shares are of a split's objects, 0 to 1. `drawn`, for shapes, is what only the generator knows.
    """
    card: dict[str, Any] = {
        "name": raw.name,
        "format": dataset.format,
        "path": raw.path,
        "license": dataset.license,
        "digest": raw.digest,
        "classes": list(raw.classes),
        "splits": {split: describe_split(index, raw.classes) for split, index in raw.splits.items()},
        "faults": raw.faults.summary(),
    }
    if dataset.format == "shapes":
        card["drawn"] = json.loads((raw.root / MARKER).read_text(encoding="utf-8"))
    return card


def describe_split(index: Index, classes: tuple[str, ...]) -> dict[str, Any]:
    """One split's figures; those of an empty split are None."""
    per_picture = np.diff(index.offsets)
    counts = np.bincount(index.labels, minlength=len(classes))
    return {
        "pictures": len(index),
        "objects": len(index.boxes),
        "empty_pictures": int((per_picture == 0).sum()),
        "objects_per_picture": _quantiles(per_picture),
        "picture_side_px": _quantiles(index.sizes.max(axis=1)),
        "box_side_share": _quantiles(side_shares(index)),
        "box_side_px": _quantiles(np.sqrt(box_ops.areas(index.boxes))),
        "overlapping": _share(overlapping(index)),
        "at_border": _share(at_border(index)),
        "difficult": _share(index.difficult),
        "crowd": _share(index.crowd),
        "objects_by_class": {name: int(count) for name, count in zip(classes, counts, strict=True)},
    }


def side_shares(index: Index) -> NDArray[np.float64]:
    """[T], longer side of each box as a share of its picture's longer side."""
    sides = (index.boxes[:, 2:] - index.boxes[:, :2]).max(axis=1, initial=0)
    return np.asarray(sides / index.sizes.max(axis=1, initial=1)[index.image_rows()])


def overlapping(index: Index) -> NDArray[np.bool_]:
    """[T], whether the box shares area with another box of its picture."""
    found = np.zeros(len(index.boxes), dtype=np.bool_)
    for start, stop in zip(index.offsets[:-1], index.offsets[1:], strict=True):
        if stop - start > 1:
            boxes = index.boxes[start:stop]
            shared = box_ops.intersections(boxes, boxes)
            np.fill_diagonal(shared, 0)
            found[start:stop] = shared.any(axis=1)
    return found


def at_border(index: Index) -> NDArray[np.bool_]:
    """[T], whether the box reaches the picture's border to half a pixel: most such objects are cut by it."""
    heights, widths = index.sizes[index.image_rows()].T
    x1, y1, x2, y2 = index.boxes.T
    return np.asarray((x1 < 0.5) | (y1 < 0.5) | (x2 > widths - 0.5) | (y2 > heights - 0.5))


def save(card: dict[str, Any], folder: str | Path = FOLDER) -> None:
    """Write `card.json`, and `classes.csv` with the objects of each class in each split."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    splits = card["splits"]
    with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *splits])
        for name in card["classes"]:
            writer.writerow([name, *(split["objects_by_class"][name] for split in splits.values())])


def _quantiles(values: NDArray[np.generic]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.quantile(values.astype(np.float64), list(QUANTILES.values()))
    quantiles = {name: round(float(value), 4) for name, value in zip(QUANTILES, found, strict=True)}
    return {"mean": round(float(values.astype(np.float64).mean()), 4), **quantiles}


def _share(flags: NDArray[np.bool_]) -> float | None:
    return round(float(flags.mean()), 4) if len(flags) else None
