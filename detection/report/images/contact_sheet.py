"""Contact sheet: many images on one page, each with its boxes and a caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detection.data.loading.image_io import decode
from detection.report.images.boxes_on_image import FP_COLOR, IGNORED_COLOR, TP_COLOR, draw_boxes, font
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
    image = decode(root / record.file, (record.height, record.width))
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
