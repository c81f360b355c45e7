"""Boxes with names on pictures, and the colours that classes have in every figure. Needs PIL alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
    taken: list[tuple[float, float, float, float]] = []
    for i in map(int, order):
        colour = colours[i] if colours is not None else class_colour(int(labels[i]))
        x1, y1, x2, y2 = (float(value) * scale for value in boxes[i])
        corners = x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)
        draw.rectangle(corners, outline="black" if _is_light(colour) else "white", width=2 * unit + 1)
        draw.rectangle(corners, outline=colour, width=2 * unit)
    for i in map(int, order):
        colour = colours[i] if colours is not None else class_colour(int(labels[i]))
        text = names[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}")
        _draw_label(draw, canvas.size, boxes[i] * scale, text, colour, font, unit, taken)
    return canvas


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: NDArray[np.floating],
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    unit: int,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write a name on a plate at an edge of its box, above it where that is free."""
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 4 * unit, bottom - top + 4 * unit
    x1, y1, x2, y2 = (float(value) for value in box)
    columns = [min(max(0.0, x), max(0.0, size[0] - width)) for x in (x1, x2 - width)]
    rows = [y for y in (y1 - height, y1, y2, y2 - height) if 0 <= y <= size[1] - height] or [0.0]
    places = [(x, y, x + width, y + height) for y in rows for x in columns]
    free = [place for place in places if not any(_touch(place, other) for other in taken)]
    x, y = (free or places)[0][:2]
    taken.append((x, y, x + width, y + height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    ink = "black" if _is_light(colour) else "white"
    draw.text((x + 2 * unit - left, y + 2 * unit - top), text, fill=ink, font=font)


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


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_light(colour: str) -> bool:
    """Whether black text is easier to read on it than white (luma, ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
