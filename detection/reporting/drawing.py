"""Boxes with names on pictures, and the colours that classes have in every figure. Needs PIL alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rectangle = tuple[float, float, float, float]
"""`x1, y1, x2, y2`."""
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F")
"""Okabe and Ito's colours, told apart with the common kinds of colour blindness; black is left for text."""
STEP = 0.72
"""Classes after the eighth repeat the palette, each round darker by this factor."""


def class_colour(label: int) -> str:
    """The colour of a class as `#rrggbb`, the same in every figure."""
    round_, place = divmod(int(label), len(PALETTE))
    channels = [int(PALETTE[place][i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(channel * STEP ** (round_ % 5)):02x}" for channel in channels)


def draw_boxes(
    picture: Image.Image,
    boxes: NDArray[np.floating],
    labels: NDArray[np.integer],
    names: Sequence[str],
    scores: NDArray[np.floating] | None = None,
    colours: Sequence[str] | None = None,
    *,
    least_side: int = 320,
) -> Image.Image:
    """Draw boxes and their names onto a copy of a picture.

    Args:
        picture: Any mode; a small one is enlarged, so that names can be read.
        boxes: [M, 4] `x1, y1, x2, y2` in the picture's own pixels, 0-based, half-open.
        labels: [M], counted from 0.
        names: Class names; label i is `names[i]`.
        scores: [M] in 0..1, written behind the names; boxes of higher score are drawn on top.
        colours: [M] `#rrggbb`, one a box; None: each class its own.
        least_side: The longer side of what comes back is at least this many pixels.

    Returns:
        An RGB picture.
    """
    scale = max(1.0, least_side / max(picture.size))
    canvas = picture.convert("RGB")
    if scale > 1:
        size = round(picture.width * scale), round(picture.height * scale)
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    unit = max(1, round(max(canvas.size) / 320))
    font = ImageFont.load_default(size=11 * unit)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    colour_of = [class_colour(int(label)) for label in labels] if colours is None else colours
    for i in map(int, order):
        x1, y1, x2, y2 = (float(value) * scale for value in boxes[i])
        corners = x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
        draw.rectangle(corners, outline="black" if is_light(colour_of[i]) else "white", width=2 * unit + 1)
        draw.rectangle(corners, outline=colour_of[i], width=2 * unit)
    best_first = [int(i) for i in reversed(order)]
    texts = [names[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}") for i in best_first]
    edges = [font.getbbox(text) for text in texts]
    plates = [(right - left + 4 * unit, low - top + 4 * unit) for left, top, right, low in edges]
    named = [tuple(float(value) * scale for value in boxes[i]) for i in best_first]
    places = place_labels(named, plates, canvas.size)  # type: ignore[arg-type]
    for i, text, edge, plate, (x, y) in zip(best_first, texts, edges, plates, places, strict=True):
        draw.rectangle((x, y, x + plate[0] - 1, y + plate[1] - 1), fill=colour_of[i])
        ink = "black" if is_light(colour_of[i]) else "white"
        draw.text((x + 2 * unit - edge[0], y + 2 * unit - edge[1]), text, fill=ink, font=font)
    return canvas


def place_labels(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[float, float]], canvas: tuple[float, float]
) -> list[tuple[float, float]]:
    """Find each name a place at an edge of its box.

    First come, first served: each takes the first place that no earlier name covers, or else the one that is
    covered least. So a name never yields to a later one, and leaving out the last ones moves no other.

    Args:
        boxes: What is named, the most important first.
        sizes: Width and height of each name's plate.
        canvas: Width and height of the picture; plates stay inside it where they fit.

    Returns:
        Left and top of each plate.
    """
    taken: list[Rectangle] = []
    for box, (width, height) in zip(boxes, sizes, strict=True):
        places = [(x, y, x + width, y + height) for x, y in _corners(box, width, height, canvas)]
        free = (place for place in places if not any(_common(place, other) for other in taken))
        first = next(free, None)
        taken.append(first or min(places, key=lambda one: sum(_common(one, other) for other in taken)))
    return [(x, y) for x, y, _, _ in taken]


def _corners(
    box: Rectangle, width: float, height: float, canvas: tuple[float, float]
) -> list[tuple[float, float]]:
    """Above the box, at its top inside, below it, at its bottom inside, beside it; at either end of each."""
    x1, y1, x2, y2 = box
    most = max(0.0, canvas[1] - height)
    columns = [min(max(0.0, x), max(0.0, canvas[0] - width)) for x in (x1, x2 - width, (x1 + x2 - width) / 2)]
    rows = [y for y in (y1 - height, y1, y2, y2 - height, (y1 + y2 - height) / 2) if 0 <= y <= most]
    along = [(x, y) for y in rows or [min(max(0.0, y1), most)] for x in columns]
    beside = [(x, min(max(0.0, y1), most)) for x in (x2, x1 - width) if 0 <= x <= canvas[0] - width]
    return along + beside


def _common(a: Rectangle, b: Rectangle) -> float:
    """Area that two rectangles share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def sheet(pictures: Sequence[Image.Image], columns: int, gap: int = 8) -> Image.Image:
    """Pictures in rows on white, each scaled to fit the same cell (the first picture's longer side)."""
    side = max(pictures[0].size)
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        scale = side / max(picture.size)
        fitted = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        row, column = divmod(i, columns)
        left = gap + column * (side + gap) + (side - fitted.width) // 2
        page.paste(fitted, (left, gap + row * (side + gap) + (side - fitted.height) // 2))
    return page


def is_light(colour: str) -> bool:
    """Whether black text is easier to read on it than white (luma, ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
