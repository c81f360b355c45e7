"""The dataset's figures: objects per class, sizes of boxes, a sheet of training pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from detection.boxes import areas
from detection.data.card import FOLDER, owners
from detection.data.index import Index
from detection.data.read import Raw
from detection.errors import DataError
from detection.reporting.drawing import PALETTE, class_colour, draw_boxes, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES, COLUMNS = 12, 4
COCO_SIDES = (32, 96)
"""Sides in pixels at which COCO parts small, medium and large."""


def save_figures(raw: Raw, folder: str | Path = FOLDER) -> None:
    """Draw `class_counts.png`, `box_sizes.png` and `samples.png`.

    Raises:
        DataError: A training picture cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    class_counts(raw).savefig(folder / "class_counts.png", dpi=110)
    box_sizes(raw).savefig(folder / "box_sizes.png", dpi=110)
    samples(raw).save(folder / "samples.png")


def class_counts(raw: Raw) -> "Figure":
    """Bars of objects per class, the most frequent on top, a colour a split."""
    from matplotlib.figure import Figure

    splits = {split: index for split, index in raw.splits.items() if len(index)}
    counts = {split: np.bincount(index.labels, minlength=len(raw.classes)) for split, index in splits.items()}
    order = np.argsort(counts["train"], kind="stable")
    figure = Figure(figsize=(7, 1.6 + max(1.5, 0.16 * len(order) * len(splits))), layout="constrained")
    axes = figure.subplots()
    thick = 0.8 / len(splits)
    for i, (split, count) in enumerate(counts.items()):
        place = np.arange(len(order)) + 0.4 - thick * (i + 0.5)
        bars = axes.barh(place, count[order], thick, color=PALETTE[i], label=f"{split} ({count.sum():,})")
        axes.bar_label(bars, padding=3, fontsize=7, fmt="{:,.0f}")
    axes.set_yticks(np.arange(len(order)), [raw.classes[label] for label in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.margins(x=0.1)
    axes.set_xlabel("objects")
    axes.set_title(f"{raw.name}: objects per class")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def box_sizes(raw: Raw) -> "Figure":
    """Sizes in pixels with COCO's limits, and sides as shares of the picture's, of the training boxes."""
    from matplotlib.figure import Figure

    index = raw.splits["train"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = np.sqrt(np.maximum(areas(index.boxes), 1))
    bins = np.geomspace(sizes.min() * 0.95, sizes.max() * 1.05, 40)
    left.hist(sizes, bins=bins, color=PALETTE[0])
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:.0f}")
    parts = np.searchsorted(COCO_SIDES, sizes, side="right")
    limits = (bins[0], *COCO_SIDES, bins[-1])
    left.margins(y=0.15)
    for i, name in enumerate(("small", "medium", "large")):
        low, high = max(limits[i], bins[0]), min(limits[i + 1], bins[-1])
        if low < high:
            text = f"{name}\n{np.mean(parts == i):.0%}"
            left.text(
                np.sqrt(low * high), 0.98, text, transform=left.get_xaxis_transform(), ha="center", va="top"
            )
        if i < 2 and bins[0] < COCO_SIDES[i] < bins[-1]:
            left.axvline(COCO_SIDES[i], color="black", linewidth=1, linestyle="--")
    left.set_xlabel("√area of the box in pixels")
    left.set_ylabel("training objects")
    shares = (index.boxes[:, 2:] - index.boxes[:, :2]) / index.sizes[owners(index)][:, ::-1]
    mesh = right.hist2d(*shares.T.clip(0, 1), bins=40, range=((0, 1), (0, 1)), cmap="viridis", cmin=1)[3]
    figure.colorbar(mesh, ax=right, label="training objects")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.7, linestyle=":")
    right.set_aspect("equal")
    right.set_xlabel("width / picture width")
    right.set_ylabel("height / picture height")
    figure.suptitle(f"{raw.name}: sizes of the training boxes")
    return figure


def samples(raw: Raw) -> Image.Image:
    """Training pictures from the whole length of the split, with their boxes; difficult and crowd in grey."""
    index = raw.splits["train"]
    filled = np.flatnonzero(np.diff(index.offsets))
    rows = filled[np.unique(np.linspace(0, len(filled) - 1, SAMPLES).astype(int))]
    return sheet([_sample(raw, index, int(row)) for row in rows], COLUMNS)


def _sample(raw: Raw, index: Index, row: int) -> Image.Image:
    record = index[row]
    grey = record.difficult | record.crowd
    colours = ["#9a9a9a" if g else class_colour(int(i)) for i, g in zip(record.labels, grey, strict=True)]
    try:
        with Image.open(raw.root / record.file) as picture:
            picture.thumbnail((480, 480))
            scale = picture.width / record.width
            return draw_boxes(picture, record.boxes * scale, record.labels, raw.classes, colours=colours)
    except (UnidentifiedImageError, OSError):
        raise DataError(f"{raw.root / record.file}: not readable as a picture; replace the file") from None
