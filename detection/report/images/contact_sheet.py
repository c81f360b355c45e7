"""Boxes with labels drawn on images, and contact sheets of many images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detection.data.loading.image_io import decode
from detection.report.images.image_matches import ImageMatches

WIDTH_PX = 1640
"""Width of a sheet: four images of 400 pixels."""
MAX_HEIGHT_PX = 560
"""Largest height of an image; a row of tall images is narrower than the sheet."""
GAP_PX, CAPTION_PX, FONT_PX = 8, 20, 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One image of a sheet."""

    image: Image.Image
    boxes: NDArray[np.floating]
    """[M, 4] `x1, y1, x2, y2` in pixels of the image, 0-based, half-open."""
    labels: NDArray[np.integer]
    """[M], from 0."""
    text: str
    """Caption, shortened in the middle to the width of the image."""
    scores: NDArray[np.floating] | None = None
    """[M] in [0, 1], written after the names."""
    colors: Sequence[str] | None = None
    """[M] `#rrggbb` per box; None uses the colors of the classes."""


def contact_sheet(tiles: Sequence[Tile], classes: Sequence[str], columns: int = 4) -> Image.Image:
    """Lay out images in rows of equal height that fill the width of the sheet.

    Args:
        tiles: At least one.
        classes: Names in label order.
        columns: Images per row.
    """
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    layouts = [_layout(row, columns) for row in rows]
    width = max(sum(widths) + GAP_PX * (len(widths) + 1) for _, widths in layouts)
    total = GAP_PX + sum(height + CAPTION_PX + GAP_PX for height, _ in layouts)
    page = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(page)
    top = GAP_PX
    for row, (height, widths) in zip(rows, layouts, strict=True):
        left = GAP_PX
        for tile, side in zip(row, widths, strict=True):
            page.paste(_drawn(tile, classes, side, height), (left, top))
            position = left, top + height + CAPTION_PX // 2
            draw.text(position, _shortened(tile.text, side), fill="black", font=font(FONT_PX), anchor="lm")
            left += side + GAP_PX
        top += height + CAPTION_PX + GAP_PX
    return page


def _layout(tiles: Sequence[Tile], columns: int) -> tuple[int, list[int]]:
    """Height of a row and widths of its images; an incomplete row is narrower."""
    ratios = [tile.image.width / tile.image.height for tile in tiles]
    available = WIDTH_PX - GAP_PX * (columns + 1)
    height = min(MAX_HEIGHT_PX, available * len(tiles) / columns / sum(ratios))
    ends = (round(height * total) for total in accumulate(ratios, initial=0.0))
    return max(1, int(height)), [max(1, end - start) for start, end in pairwise(ends)]


def _drawn(tile: Tile, classes: Sequence[str], width: int, height: int) -> Image.Image:
    """The resized image; boxes are drawn afterwards, with lines of equal width on the whole sheet."""
    scale = np.array([width / tile.image.width, height / tile.image.height] * 2)
    image = tile.image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return draw_boxes(image, tile.boxes * scale, tile.labels, classes, tile.scores, tile.colors, text=FONT_PX)


def _shortened(text: str, width: int) -> str:
    kept, result = len(text), text
    while kept and font(FONT_PX).getlength(result) > width:
        kept -= 1
        result = text[: kept // 2] + "…" + text[len(text) - (kept + 1) // 2 :]
    return result


def prediction_tiles(matches: ImageMatches, root: Path, score: float) -> tuple[Tile, Tile]:
    """Return the ground truth and the predictions of an image, in the colors of TP, FP and ignored.

    Args:
        matches: Image with its matched detections.
        root: Folder that the file of the image is relative to.
        score: Detections below it are left out.

    Raises:
        DataError: The image cannot be read.
    """
    record, kept = matches.record, matches.scores >= score
    image = decode(root / record.file, (record.height, record.width), upright=record.upright)
    detected = matches.counted & (matches.matched_scores >= score)
    ground_truth = Tile(
        image=image,
        boxes=record.boxes,
        labels=record.labels,
        text=f"{record.id}: ground truth",
        colors=_colors(detected, matches.counted & ~detected),
    )
    predictions = Tile(
        image=image,
        boxes=matches.boxes[kept],
        labels=matches.labels[kept],
        text=f"predictions: {matches.count(score)}",
        scores=matches.scores[kept],
        colors=_colors(matches.true_positive[kept], matches.false_positive[kept]),
    )
    return ground_truth, predictions


def _colors(good: NDArray[np.bool_], bad: NDArray[np.bool_]) -> list[str]:
    return [TP_COLOR if g else FP_COLOR if b else IGNORED_COLOR for g, b in zip(good, bad, strict=True)]


Rectangle = tuple[float, float, float, float]
"""`x1, y1, x2, y2`."""
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F")
"""Okabe and Ito's colors, distinguishable with the common types of color blindness, without black."""
TP_COLOR, FP_COLOR, IGNORED_COLOR = "#009E73", "#D55E00", "#8c8c8c"
"""Detected objects and true positives; missed objects and false positives; difficult and crowd objects."""
MIN_SIDE_PX = 320
DARKENING = 0.72
"""Classes after the eighth repeat the palette, each round darker by this factor."""


def class_color(label: int) -> str:
    """Return the color of a class as `#rrggbb`."""
    round_, i = divmod(int(label), len(PALETTE))
    channels = [int(PALETTE[i][start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(channel * DARKENING ** (round_ % 5)):02x}" for channel in channels)


def draw_boxes(
    image: Image.Image,
    boxes: NDArray[np.floating],
    labels: NDArray[np.integer],
    names: Sequence[str],
    scores: NDArray[np.floating] | None = None,
    colors: Sequence[str] | None = None,
    *,
    text: int = 0,
) -> Image.Image:
    """Draw boxes and their class names on a copy of an image.

    Args:
        image: Image of any mode.
        boxes: [M, 4] `x1, y1, x2, y2` in absolute pixels, 0-based, half-open.
        labels: [M], from 0.
        names: Class names in label order.
        scores: [M] in [0, 1], written after the names; boxes of higher score are drawn on top.
        colors: [M] `#rrggbb` per box; None uses the colors of the classes.
        text: Font height in pixels, without resizing the image. 0 derives it from the image size, and
            enlarges a small image to a longer side of 320 pixels so that names are readable.

    Returns:
        RGB image.
    """
    scale = 1.0 if text else max(1.0, MIN_SIDE_PX / max(image.size))
    canvas = image.convert("RGB")
    if scale > 1:
        size = round(image.width * scale), round(image.height * scale)
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    unit = 1 if text else max(1, round(max(canvas.size) / MIN_SIDE_PX))
    letters = font(text or 11 * unit)
    order = [*range(len(boxes))] if scores is None else np.argsort(scores, kind="stable").tolist()
    colors = [class_color(int(label)) for label in labels] if colors is None else colors
    scaled = [tuple(float(value) * scale for value in box) for box in boxes]
    for i in order:
        x1, y1, x2, y2 = scaled[i]
        corners = x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
        draw.rectangle(corners, outline=contrast(colors[i]), width=2 * unit + 1)
        draw.rectangle(corners, outline=colors[i], width=2 * unit)
    order.reverse()
    texts = [names[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}") for i in order]
    extents = [letters.getbbox(one, anchor="lt")[2:] for one in texts]
    plates = [(width + 4 * unit, height + 4 * unit) for width, height in extents]
    places = place_labels([scaled[i] for i in order], plates, canvas.size)
    for i, one, plate, place in zip(order, texts, plates, places, strict=True):
        x, y = map(round, place)  # PIL clips letters at fractional positions
        draw.rectangle((x, y, x + plate[0] - 1, y + plate[1] - 1), fill=colors[i])
        draw.text((x + 2 * unit, y + 2 * unit), one, fill=contrast(colors[i]), font=letters, anchor="lt")
    return canvas


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans from matplotlib or the system, else Pillow's font, which is ASCII only; size in pixels."""
    matplotlib = find_spec("matplotlib")
    folder = Path(matplotlib.origin).parent if matplotlib and matplotlib.origin else Path()
    for file in (folder / "mpl-data/fonts/ttf/DejaVuSans.ttf", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(file, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def place_labels(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[float, float]], canvas: tuple[float, float]
) -> list[tuple[float, float]]:
    """Place the label of each box at one of its edges.

    Greedy: each label takes the first candidate that overlaps no earlier label, else the one with the
    smallest overlap. Dropping the last boxes therefore moves no other label.

    Args:
        boxes: Boxes, most important first.
        sizes: Width and height of each label.
        canvas: Width and height of the image; labels stay inside where they fit.

    Returns:
        Left and top of each label.
    """
    taken: list[Rectangle] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        places = [(x, y, x + width, y + height) for x, y in _candidates(box, width, height, canvas)]
        free = (place for place in places if not any(overlap(place, other) for other in taken))
        first = next(free, None)
        taken.append(first or min(places, key=lambda one: sum(overlap(one, other) for other in taken)))
    return [(x, y) for x, y, _, _ in taken]


def _candidates(box: Rectangle, width: float, height: float, canvas: tuple[float, float]) -> list[tuple[float, float]]:
    """Above the box, inside its top, below it, inside its bottom, in its middle, and beside it."""
    x1, y1, x2, y2 = box
    lowest = max(0.0, canvas[1] - height)
    columns = [min(max(0.0, x), max(0.0, canvas[0] - width)) for x in (x1, x2 - width, (x1 + x2 - width) / 2)]
    rows = [y for y in (y1 - height, y1, y2, y2 - height, (y1 + y2 - height) / 2) if 0 <= y <= lowest]
    inside = [(x, y) for y in rows or [min(max(0.0, y1), lowest)] for x in columns]
    beside = [(x, min(max(0.0, y1), lowest)) for x in (x2, x1 - width) if 0 <= x <= canvas[0] - width]
    return inside + beside


def overlap(a: Rectangle, b: Rectangle) -> float:
    """Area of the intersection of two rectangles."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def contrast(color: str) -> str:
    """Return `black` or `white`, whichever is readable on a color (luma, ITU-R BT.601)."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
