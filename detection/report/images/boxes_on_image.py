"""Boxes with names on pictures, and the colours that classes have in every figure. Loads no matplotlib."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rectangle = tuple[float, float, float, float]
"""`x1, y1, x2, y2`."""
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F")
"""Okabe and Ito's colours, told apart with the common kinds of colour blindness; black is left for text."""
LEAST_SIDE = 320
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
    text: int = 0,
) -> Image.Image:
    """Draw boxes and their names onto a copy of a picture.

    Args:
        picture: Any mode.
        boxes: [M, 4] `x1, y1, x2, y2` in the picture's own pixels, 0-based, half-open.
        labels: [M], counted from 0.
        names: Class names; label i is `names[i]`.
        scores: [M] in 0..1, written behind the names; boxes of higher score are drawn on top.
        colours: [M] `#rrggbb`, one a box; None: each class its own.
        text: Height of the names in pixels, the picture left as large as it is; 0: by the picture's size, a
            small one enlarged to a longer side of 320 pixels, so that names can be read.

    Returns:
        An RGB picture.
    """
    scale = 1.0 if text else max(1.0, LEAST_SIDE / max(picture.size))
    canvas = picture.convert("RGB")
    if scale > 1:
        size = round(picture.width * scale), round(picture.height * scale)
        canvas = canvas.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    unit = 1 if text else max(1, round(max(canvas.size) / LEAST_SIDE))
    letters = font(text or 11 * unit)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    colour_of = [class_colour(int(label)) for label in labels] if colours is None else colours
    for i in map(int, order):
        x1, y1, x2, y2 = (float(value) * scale for value in boxes[i])
        corners = x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
        draw.rectangle(corners, outline="black" if is_light(colour_of[i]) else "white", width=2 * unit + 1)
        draw.rectangle(corners, outline=colour_of[i], width=2 * unit)
    best_first = [int(i) for i in reversed(order)]
    texts = [names[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}") for i in best_first]
    edges = [letters.getbbox(one, anchor="lt") for one in texts]
    plates = [(right + 4 * unit, low + 4 * unit) for _, _, right, low in edges]
    named = [tuple(float(value) * scale for value in boxes[i]) for i in best_first]
    places = place_labels(named, plates, canvas.size)  # type: ignore[arg-type]
    for i, one, plate, place in zip(best_first, texts, plates, places, strict=True):
        x, y = map(round, place)  # between two pixels PIL cuts letters
        draw.rectangle((x, y, x + plate[0] - 1, y + plate[1] - 1), fill=colour_of[i])
        ink = "black" if is_light(colour_of[i]) else "white"
        draw.text((x + 2 * unit, y + 2 * unit), one, fill=ink, font=letters, anchor="lt")
    return canvas


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in a size in pixels, as matplotlib brings it along: PIL's own font knows ASCII alone."""
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(file, size)


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


def is_light(colour: str) -> bool:
    """Whether black text is easier to read on it than white (luma, ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
