"""The dataset's figures: objects per class, sizes of boxes, a sheet of training pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.data.index import Index
from detection.data.loading.image_io import decode
from detection.data.sources.dataset import RawDataset
from detection.files import REPORTS_DATASET
from detection.ops.boxes import areas
from detection.report.images.boxes_on_image import PALETTE, class_colour
from detection.report.images.contact_sheet import Tile, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES, COLUMNS = 12, 4
MANY = 40
"""From this many classes on, bars are thin, names small, and the numbers stand in `classes.csv` alone."""
COCO_SIDES = (32, 96)
"""Sides in pixels at which COCO parts small, medium and large."""


def save_figures(raw: RawDataset, folder: str | Path = REPORTS_DATASET) -> None:
    """Draw `class_counts.png`, `box_sizes.png` and `samples.png`.

    Raises:
        DataError: A training picture cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    class_counts(raw).savefig(folder / "class_counts.png", dpi=110)
    box_sizes(raw).savefig(folder / "box_sizes.png", dpi=110)
    samples(raw).save(folder / "samples.png")


def class_counts(raw: RawDataset) -> "Figure":
    """Bars of objects per class, the most frequent on top, a colour a split."""
    from matplotlib.figure import Figure

    splits = {split: index for split, index in raw.splits.items() if len(index)}
    counts = {split: np.bincount(index.labels, minlength=len(raw.classes)) for split, index in splits.items()}
    order = np.argsort(counts["train"], kind="stable")
    many = len(order) > MANY
    height = max(1.5, min(0.16 * len(order) * len(splits), 16))
    figure = Figure(figsize=(7, 1.6 + height), layout="constrained")
    axes = figure.subplots()
    thick = 0.8 / len(splits)
    for i, (split, count) in enumerate(counts.items()):
        place = np.arange(len(order)) + 0.4 - thick * (i + 0.5)
        bars = axes.barh(place, count[order], thick, color=PALETTE[i], label=f"{split} ({count.sum():,})")
        if not many:
            axes.bar_label(bars, padding=3, fontsize=7, fmt="{:,.0f}")
    names = [raw.classes[label] for label in order]
    axes.set_yticks(np.arange(len(order)), names, fontsize=6 if many else None)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.margins(x=0.1)
    axes.set_xlabel("objects")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{raw.name}: objects per class")
    figure.legend(loc="outside lower center", ncols=len(splits), frameon=False)
    return figure


def box_sizes(raw: RawDataset) -> "Figure":
    """Training boxes: sizes in pixels with COCO's limits, and sides as shares of the picture's."""
    from matplotlib.figure import Figure

    index = raw.splits["train"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _histogram(left, np.sqrt(np.maximum(areas(index.boxes), 1)))
    shares = (index.boxes[:, 2:] - index.boxes[:, :2]) / index.sizes[index.image_rows()][:, ::-1]
    _side_map(figure, right, shares.clip(0, 1))
    figure.suptitle(f"{raw.name}: sizes of the training boxes")
    return figure


def _histogram(axes: "Axes", sizes: NDArray[np.floating]) -> None:
    """Square roots of areas [T] in pixels, with COCO's limits and the share between them."""
    bins = np.geomspace(sizes.min() * 0.95, sizes.max() * 1.05, 26)
    axes.hist(sizes, bins=bins.tolist(), color=PALETTE[0])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.margins(y=0.15)
    parts = np.searchsorted(COCO_SIDES, sizes, side="right")
    limits = np.clip((0, *COCO_SIDES, np.inf), bins[0], bins[-1])
    for i, name in enumerate(("small", "medium", "large")):
        if (parts == i).any():
            place = np.sqrt(limits[i] * limits[i + 1]), 0.98
            text = f"{name}\n{np.mean(parts == i):.0%}"
            axes.annotate(text, place, xycoords=axes.get_xaxis_transform(), ha="center", va="top")
    for side in COCO_SIDES:
        if bins[0] < side < bins[-1]:
            axes.axvline(side, color="black", linewidth=1, linestyle="--")
    axes.set_xlabel("√area of the box in pixels")
    axes.set_ylabel("training objects")


def _side_map(figure: "Figure", axes: "Axes", shares: NDArray[np.floating]) -> None:
    """Width against height [T, 2], 0 to 1, as a map of counts."""
    from matplotlib.colors import LogNorm

    counts = np.histogram2d(shares[:, 1], shares[:, 0], bins=25, range=((0, 1), (0, 1)))[0]
    mesh = axes.imshow(
        np.ma.masked_equal(counts, 0),
        norm=LogNorm(vmin=1, vmax=max(2, counts.max())),
        origin="lower",
        extent=(0, 1, 0, 1),
        cmap="viridis",
    )
    bar = figure.colorbar(mesh, ax=axes, label="training objects")
    bar.ax.yaxis.set_major_formatter("{x:.0f}")
    bar.ax.yaxis.set_minor_formatter("")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("width / picture width")
    axes.set_ylabel("height / picture height")


def samples(raw: RawDataset) -> Image.Image:
    """Training pictures from the whole length of the split, with their boxes; difficult and crowd in grey."""
    index = raw.splits["train"]
    filled = np.flatnonzero(np.diff(index.offsets))
    rows = filled[np.unique(np.linspace(0, len(filled) - 1, SAMPLES).astype(int))]
    return sheet([_sample(raw, index, int(row)) for row in rows], raw.classes, COLUMNS)


def _sample(raw: RawDataset, index: Index, row: int) -> Tile:
    record = index[row]
    grey = record.difficult | record.crowd
    colours = ["#9a9a9a" if g else class_colour(int(i)) for i, g in zip(record.labels, grey, strict=True)]
    picture = decode(raw.root / record.file, (record.height, record.width))
    return Tile(
        picture=picture,
        boxes=record.boxes,
        labels=record.labels,
        text=Path(record.file).name,
        colours=colours,
    )
