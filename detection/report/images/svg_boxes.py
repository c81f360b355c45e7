"""One picture and its boxes as the page draws them in SVG: sharp at every size, and sifted by score."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.data.loading.image_io import decode
from detection.report.images.boxes_on_image import Rectangle, class_colour, is_light, place_labels
from detection.report.images.image_matches import ImageMatches

SIDE = 480
"""Units of a drawing's longer side, and most pixels of its JPEG's."""
TEXT, LETTER, PLATE = 15, 8.4, 19
"""Size of letters, the width one takes, and the height of a name's plate, in units."""
FEWEST, MOST = 0.05, 60
"""Detections below this score, and the least sure ones of a picture with more than so many, are left out."""
UNCOUNTED = "#ffffff"
"""Of difficult objects and crowds; no class has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMark:
    """A box with its name."""

    box: tuple[float, float, float, float]
    """Left, top, width, height in units."""
    text: str
    plate: tuple[float, float, float]
    """Left, top and width of the name's plate."""
    colour: str
    ink: str
    """Of the name: black or white, whichever can be read on the colour."""
    score: float
    """Of a detection; of an object the score from which on it is missed, -1 where nothing finds it."""
    kind: str
    """`right`, `wrong` or `ignored`; of an object `object` or `ignored`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One picture of the page."""

    key: str
    """Names its JPEG on the page."""
    width: float
    height: float
    """Of the drawing in units."""
    scale: float
    """Units a pixel of the original."""
    picture: str
    """The JPEG as a data URL."""
    objects: tuple[BoxMark, ...]
    found: tuple[BoxMark, ...]
    """The best score first."""
    labels: frozenset[int]
    """Classes of all marks."""


def draw(judged: ImageMatches, root: Path, classes: Sequence[str], key: str) -> Drawing:
    """Draw one picture.

    Raises:
        DataError: It cannot be read.
    """
    record = judged.record
    picture = decode(root / record.file, (record.height, record.width))
    picture.thumbnail((SIDE, SIDE))
    scale = SIDE / max(record.height, record.width)
    size = record.width * scale, record.height * scale
    shown = np.flatnonzero(judged.scores >= FEWEST)[:MOST]
    order = np.argsort(-np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1), kind="stable")
    kinds = np.select([judged.right, judged.wrong], ["right", "wrong"], "ignored")[shown].tolist()
    found_texts = [
        f"{classes[label]} {score:.2f}" + (" ✗" if kind == "wrong" else "")
        for label, score, kind in zip(judged.labels[shown], judged.scores[shown], kinds, strict=True)
    ]
    return Drawing(
        key=key,
        width=round(size[0], 1),
        height=round(size[1], 1),
        scale=scale,
        picture=data_url(picture, quality=80),
        objects=_marks(
            record.boxes[order] * scale,
            [classes[label] for label in record.labels[order]],
            [class_colour(int(label)) for label in record.labels[order]],
            judged.found_at[order],
            ["object" if counted else "ignored" for counted in judged.counted[order]],
            size,
        ),
        found=_marks(
            judged.boxes[shown] * scale,
            found_texts,
            [class_colour(int(label)) for label in judged.labels[shown]],
            judged.scores[shown],
            kinds,
            size,
        ),
        labels=frozenset({*record.labels.tolist(), *judged.labels[shown].tolist()}),
    )


def data_url(picture: Image.Image, quality: int = 88) -> str:
    """A picture as a JPEG that stands in the page itself."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=0 if quality > 85 else 2, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _marks(
    boxes: NDArray[np.floating],
    texts: Sequence[str],
    colours: Sequence[str],
    scores: NDArray[np.floating],
    kinds: Sequence[str],
    canvas: tuple[float, float],
) -> tuple[BoxMark, ...]:
    inside = np.clip(boxes, 0, np.tile(canvas, 2))
    corners: list[Rectangle] = [(float(a), float(b), float(c), float(d)) for a, b, c, d in inside]
    sizes = [(len(text) * LETTER + 8, float(PLATE)) for text in texts]
    plates = place_labels(corners, sizes, canvas)
    marks = []
    for (x1, y1, x2, y2), (width, _), (left, top), text, colour, score, kind in zip(
        corners, sizes, plates, texts, colours, scores, kinds, strict=True
    ):
        colour = UNCOUNTED if kind == "ignored" else colour
        marks.append(
            BoxMark(
                box=(round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1)),
                text=text,
                plate=(round(left, 1), round(top, 1), round(width, 1)),
                colour=colour,
                ink="black" if is_light(colour) else "white",
                score=round(float(score), 4),
                kind=kind,
            )
        )
    return tuple(marks)
