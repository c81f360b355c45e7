"""Test pictures twice on one PNG: what is there, and what was found, in the colours of right and wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detection.data.loading.image_io import decode
from detection.report.images.boxes_on_image import draw_boxes, font
from detection.report.images.image_matches import ImageMatches

RIGHT, WRONG, IGNORED = "#009E73", "#D55E00", "#8c8c8c"
"""Right or found, wrong or missed, not counted: told apart with the common kinds of colour blindness."""
LONGEST = 640
"""Side in pixels that a large picture is reduced to."""


def contact_sheet(
    pictures: Sequence[ImageMatches], root: Path, classes: Sequence[str], score: float
) -> Image.Image:
    """Pictures of a split on one sheet, two columns of pairs as wide as the widest.

    Args:
        pictures: At least one.
        root: Folder that their files are relative to.
        classes: Names, in label order.
        score: Detections below it are left out.

    Raises:
        DataError: A picture cannot be read.
    """
    pairs = [_pair(picture, root, classes, score) for picture in pictures]
    width, gap = max(pair.width for pair in pairs), 16
    rows = [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
    heights = [max(pair.height for pair in row) + gap for row in rows]
    page = Image.new("RGB", (2 * width + 3 * gap, sum(heights) + gap), "white")
    for top, row in zip(np.cumsum([gap, *heights]), rows, strict=False):
        for column, pair in enumerate(row):
            page.paste(pair, (gap + column * (width + gap), int(top)))
    return page


def _pair(judged: ImageMatches, root: Path, classes: Sequence[str], score: float) -> Image.Image:
    """Truth and detections side by side under a line of text."""
    record, kept = judged.record, judged.scores >= score
    picture = decode(root / record.file, (record.height, record.width))
    picture.thumbnail((LONGEST, LONGEST))
    scale = picture.width / record.width
    there = judged.counted & (judged.found_at >= score)
    colours = _colours(there, judged.counted & ~there)
    truth = draw_boxes(picture, record.boxes * scale, record.labels, classes, colours=colours)
    found = draw_boxes(
        picture,
        judged.boxes[kept] * scale,
        judged.labels[kept],
        classes,
        judged.scores[kept],
        colours=_colours(judged.right[kept], judged.wrong[kept]),
    )
    width, height, bar = truth.width, truth.height, 26
    pair = Image.new("RGB", (2 * width + 6, height + bar), "white")
    write, letters = ImageDraw.Draw(pair), font(15)
    write.text((2, 4), "there is", fill="black", font=letters)
    write.text((width + 8, 4), f"found: {judged.tally(score)}", fill="black", font=letters)
    pair.paste(truth, (0, bar))
    pair.paste(found, (width + 6, bar))
    return pair


def _colours(good: NDArray[np.bool_], bad: NDArray[np.bool_]) -> list[str]:
    return [RIGHT if g else WRONG if b else IGNORED for g, b in zip(good, bad, strict=True)]
