"""Figures of a dataset: objects per class, sizes of the boxes, sample images of the training split."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.data.loading.image_io import decode
from detection.data.loading.index import Index
from detection.data.sources.dataset import RawDataset
from detection.files import REPORTS_DATASET
from detection.ops.boxes import areas
from detection.report.charts.vega import ChartData, to_png, to_svg
from detection.report.images.contact_sheet import IGNORED_COLOR, Tile, class_color, contact_sheet

SAMPLE_IMAGES, COLUMNS = 12, 4
MANY_CLASSES = 40
"""Number of classes above which bars have no numbers; `classes.csv` has them."""
BAR_PX, MAX_BARS_PX = 14, 1600
COCO_SIDES = (32, 96)
"""COCO's limits between small, medium and large objects: square roots of their areas in pixels."""


def save_figures(raw: RawDataset, folder: str | Path = REPORTS_DATASET) -> None:
    """Write `class_counts.png`, `box_sizes.png` and `samples.png`.

    Raises:
        DataError: A training image cannot be read.
    """
    for name, data in (("class_counts", class_counts(raw)), ("box_sizes", box_sizes(raw))):
        to_png(to_svg(name, data), Path(folder) / f"{name}.png")
    sample_images(raw).save(Path(folder) / "samples.png")


def class_counts(raw: RawDataset) -> ChartData:
    """Objects per class and split, most frequent class in train first."""
    indices = {split: index for split, index in raw.splits.items() if len(index)}
    counts = {split: np.bincount(one.labels, minlength=len(raw.classes)) for split, one in indices.items()}
    order = np.argsort(-counts["train"], kind="stable")
    rows = [
        {"class": raw.classes[label], "split": f"{split} ({count.sum():,})", "objects": int(count[label])}
        for split, count in counts.items()
        for label in order
    ]
    return ChartData(
        rows,
        f"{raw.name}: objects per class",
        params={"numbers": len(order) <= MANY_CLASSES},
        size={"height": min(BAR_PX * len(rows), MAX_BARS_PX)},
    )


def box_sizes(raw: RawDataset) -> ChartData:
    """Training boxes: histogram of √area with COCO's limits, and width by height relative to the image."""
    index = raw.splits["train"]
    relative = (index.boxes[:, 2:] - index.boxes[:, :2]) / index.sizes[index.image_rows()][:, ::-1]
    width, height = relative.clip(0, 1).T
    counts, edges, _ = np.histogram2d(width, height, bins=25, range=[(0, 1), (0, 1)])
    x, y = np.nonzero(counts)
    columns = {"low": edges[x], "high": edges[x + 1], "bottom": edges[y], "top": edges[y + 1], "objects": counts[x, y]}
    rows = _histogram(np.sqrt(np.maximum(areas(index.boxes), 1))) + _records("cell", columns)
    return ChartData(rows, f"{raw.name}: sizes of the training boxes")


def _records(part: str, columns: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """One record per row, of a part of a chart."""
    values = (column.tolist() for column in columns.values())
    return [{"part": part, **dict(zip(columns, row, strict=True))} for row in zip(*values, strict=True)]


def _histogram(sizes: NDArray[np.floating]) -> list[dict[str, Any]]:
    """Bins of the square roots of areas [T] in pixels, COCO's limits, and the fraction between them."""
    edges = np.geomspace(sizes.min() * 0.95, sizes.max() * 1.05, 26)
    rows = _records("bin", {"low": edges[:-1], "high": edges[1:], "objects": np.histogram(sizes, edges)[0]})
    rows += [{"part": "limit", "low": side} for side in COCO_SIDES if edges[0] < side < edges[-1]]
    groups = np.searchsorted(COCO_SIDES, sizes, side="right")
    limits = np.clip((0, *COCO_SIDES, np.inf), edges[0], edges[-1])
    for i, name in enumerate(("small", "medium", "large")):
        if (groups == i).any():
            middle = float(np.sqrt(limits[i] * limits[i + 1]))
            rows.append({"part": "range", "low": middle, "text": f"{name}\n{np.mean(groups == i):.0%}"})
    return rows


def sample_images(raw: RawDataset) -> Image.Image:
    """Evenly spaced training images with their boxes; difficult and crowd objects are gray."""
    index = raw.splits["train"]
    with_objects = np.flatnonzero(np.diff(index.offsets))
    rows = with_objects[np.unique(np.linspace(0, len(with_objects) - 1, SAMPLE_IMAGES).astype(int))]
    return contact_sheet([_tile(raw, index, int(row)) for row in rows], raw.classes, COLUMNS)


def _tile(raw: RawDataset, index: Index, row: int) -> Tile:
    record = index[row]
    colors = [class_color(int(label)) for label in record.labels]
    return Tile(
        image=decode(raw.root / record.file, (record.height, record.width), upright=record.upright),
        boxes=record.boxes,
        labels=record.labels,
        text=Path(record.file).name,
        colors=np.where(record.difficult | record.crowd, IGNORED_COLOR, colors).tolist(),
    )
