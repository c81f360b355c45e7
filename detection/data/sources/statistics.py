"""Dataset card: statistics of a dataset that can be compared with those of another."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.data.sources.dataset import RawDataset
from detection.data.sources.fingerprint import SHAPES_MARKER
from detection.files import REPORTS_DATASET, read_json, write_json
from detection.ops import boxes as box_ops
from detection.params.datasets import Dataset

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def describe(raw: RawDataset, dataset: Dataset) -> dict[str, Any]:
    """Card of a dataset; `generator` has the statistics of shapes that do not follow from its boxes."""
    card: dict[str, Any] = {
        "name": raw.name,
        "format": dataset.format,
        "path": raw.path,
        "license": dataset.license,
        "digest": raw.digest,
        "classes": list(raw.classes),
        "splits": {split: describe_split(index, raw.classes) for split, index in raw.splits.items()},
        "problems": raw.problems.summary(),
    }
    if dataset.format == "shapes":
        card["generator"] = read_json(raw.root / SHAPES_MARKER)
    return card


def describe_split(index: Index, classes: tuple[str, ...]) -> dict[str, Any]:
    """Statistics of one split; quantiles and fractions of its objects, None if the split has none."""
    per_image = np.diff(index.offsets)
    counts = np.bincount(index.labels, minlength=len(classes))
    return {
        "images": len(index),
        "objects": len(index.boxes),
        "empty_images": int((per_image == 0).sum()),
        "objects_per_image": _quantiles(per_image),
        "image_side_px": _quantiles(index.sizes.max(axis=1)),
        "box_side_fraction": _quantiles(side_fractions(index)),
        "box_side_px": _quantiles(np.sqrt(box_ops.areas(index.boxes))),
        "overlapping": _fraction(overlapping(index)),
        "at_border": _fraction(at_border(index)),
        "difficult": _fraction(index.difficult),
        "crowd": _fraction(index.crowd),
        "objects_by_class": {name: int(count) for name, count in zip(classes, counts, strict=True)},
    }


def side_fractions(index: Index) -> NDArray[np.float64]:
    """[T] longer side of each box over the longer side of its image."""
    sides = (index.boxes[:, 2:] - index.boxes[:, :2]).max(axis=1, initial=0)
    return np.asarray(sides / index.sizes.max(axis=1, initial=1)[index.image_rows()])


def overlapping(index: Index) -> NDArray[np.bool_]:
    """[T] mask of the boxes that intersect another box of their image."""
    mask = np.zeros(len(index.boxes), dtype=np.bool_)
    for start, stop in zip(index.offsets[:-1], index.offsets[1:], strict=True):
        if stop - start > 1:
            boxes = index.boxes[start:stop]
            intersections = box_ops.intersections(boxes, boxes)
            np.fill_diagonal(intersections, 0)
            mask[start:stop] = intersections.any(axis=1)
    return mask


def at_border(index: Index) -> NDArray[np.bool_]:
    """[T] mask of the boxes within half a pixel of the image border, most of which are truncated objects."""
    heights, widths = index.sizes[index.image_rows()].T
    x1, y1, x2, y2 = index.boxes.T
    return np.asarray((x1 < 0.5) | (y1 < 0.5) | (x2 > widths - 0.5) | (y2 > heights - 0.5))


def save(card: dict[str, Any], folder: str | Path = REPORTS_DATASET) -> None:
    """Write `card.json`, and `classes.csv` with the objects of each class per split."""
    folder = Path(folder)
    write_json(folder / "card.json", card)
    splits = card["splits"]
    with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *splits])
        for name in card["classes"]:
            writer.writerow([name, *(split["objects_by_class"][name] for split in splits.values())])


def _quantiles(values: NDArray[np.generic]) -> dict[str, float] | None:
    if not len(values):
        return None
    numbers = values.astype(np.float64)
    quantiles = np.quantile(numbers, list(QUANTILES.values())).tolist()
    named = zip(["mean", *QUANTILES], [numbers.mean(), *quantiles], strict=True)
    return {name: round(float(value), 4) for name, value in named}


def _fraction(mask: NDArray[np.bool_]) -> float | None:
    return round(float(mask.mean()), 4) if len(mask) else None
