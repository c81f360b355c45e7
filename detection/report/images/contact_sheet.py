"""Many pictures on one sheet, close together, each with its boxes and a line of text below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detection.report.images.boxes_on_image import draw_boxes, font

WIDTH = 1640
"""Of a sheet in pixels: four pictures of 400, on which names can be read, and it fits a screen."""
TALLEST = 560
"""Of a picture on it in pixels: a row of tall pictures is narrower than the sheet."""
GAP, LINE, TEXT = 8, 20, 13
"""Pixels between pictures, of the line below each, and of its letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One picture of a sheet."""

    picture: Image.Image
    boxes: NDArray[np.floating]
    """[M, 4] `x1, y1, x2, y2` in its pixels, 0-based, half-open."""
    labels: NDArray[np.integer]
    """[M], counted from 0."""
    text: str
    """What stands below it, shortened in the middle where it is longer than the picture is wide."""
    colours: Sequence[str] | None = None
    """[M] `#rrggbb`, one a box; None: each class its own."""


def sheet(tiles: Sequence[Tile], classes: Sequence[str], columns: int = 4) -> Image.Image:
    """Rows of pictures of one height, so that each row is as wide as the sheet, whatever their shapes.

    Args:
        tiles: At least one.
        classes: Names, in label order.
        columns: Pictures in a row.
    """
    rows = [_Row(tiles[i : i + columns], columns) for i in range(0, len(tiles), columns)]
    width = max(row.width for row in rows)
    page = Image.new("RGB", (width, GAP + sum(row.height + LINE + GAP for row in rows)), "white")
    write, letters = ImageDraw.Draw(page), font(TEXT)
    top = GAP
    for row in rows:
        left = GAP
        for tile, side in zip(row.tiles, row.widths, strict=True):
            page.paste(_drawn(tile, classes, side, row.height), (left, top))
            text = _shortened(tile.text, letters, side)
            write.text((left, top + row.height + LINE // 2), text, fill="black", font=letters, anchor="lm")
            left += side + GAP
        top += row.height + LINE + GAP
    return page


class _Row:
    """Pictures beside each other, and how large each becomes; a row that is not full leaves its end free."""

    def __init__(self, tiles: Sequence[Tile], columns: int) -> None:
        shapes = [tile.picture.width / tile.picture.height for tile in tiles]
        room = WIDTH - GAP * (columns + 1)
        height = min(TALLEST, room * len(tiles) / columns / sum(shapes))
        self.tiles = tiles
        self.height = max(1, int(height))
        ends = (round(height * total) for total in accumulate(shapes, initial=0.0))
        self.widths = [max(1, end - start) for start, end in pairwise(ends)]
        self.width = sum(self.widths) + GAP * (len(tiles) + 1)


def _drawn(tile: Tile, classes: Sequence[str], width: int, height: int) -> Image.Image:
    """The picture at its size on the sheet, boxes and names drawn after scaling: all are equally thick."""
    scale = np.array([width / tile.picture.width, height / tile.picture.height] * 2)
    picture = tile.picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return draw_boxes(picture, tile.boxes * scale, tile.labels, classes, colours=tile.colours, text=TEXT)


def _shortened(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    kept, result = len(text), text
    while kept and letters.getlength(result) > width:
        kept -= 1
        result = text[: kept // 2] + "…" + text[len(text) - (kept + 1) // 2 :]
    return result
