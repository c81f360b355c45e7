"""One image and its boxes as SVG elements of the page: sharp at every size, filtered by score."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.data.loading.image_io import decode
from detection.report.images.contact_sheet import Rectangle, class_color, contrast, place_labels
from detection.report.images.image_matches import ImageMatches

SIDE = 480
"""Length of the longer side of a drawing in SVG units, and largest side of its JPEG in pixels."""
LETTER_WIDTH, PLATE_HEIGHT = 8.4, 19
"""Width of a letter and height of a label, in SVG units."""
MIN_SCORE, MAX_DETECTIONS = 0.05, 60
"""Detections with a lower score, and those after the first 60 of an image, are not drawn."""
IGNORED_BOX_COLOR = "#ffffff"
"""Color of difficult and crowd objects; no class has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMark:
    """Box with its label."""

    box: Rectangle
    """Left, top, width, height in SVG units."""
    text: str
    plate: tuple[float, float, float]
    """Left, top and width of the label."""
    color: str
    ink: str
    """Text color: black or white."""
    score: float
    """Score of a detection; of an object, the score of its true positive, -1 without one."""
    outcome: str
    """`tp`, `fp` or `ignored` for a detection, `object` or `ignored` for an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One image of the page."""

    key: str
    """Id of the JPEG on the page."""
    width: float
    height: float
    """Height in SVG units."""
    scale: float
    """SVG units per pixel of the original."""
    jpeg: str
    """Data URL."""
    objects: tuple[BoxMark, ...]
    detections: tuple[BoxMark, ...]
    """Detections in decreasing order of scores."""
    labels: frozenset[int]
    """Classes of all marks."""


def draw_image(matches: ImageMatches, root: Path, classes: Sequence[str], key: str) -> Drawing:
    """Draw one image.

    Raises:
        DataError: The image cannot be read.
    """
    record = matches.record
    image = decode(root / record.file, (record.height, record.width))
    image.thumbnail((SIDE, SIDE))
    scale = SIDE / max(record.height, record.width)
    size = record.width * scale, record.height * scale
    shown = np.flatnonzero(matches.scores >= MIN_SCORE)[:MAX_DETECTIONS]
    order = np.argsort(-np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1), kind="stable")
    outcomes = np.select([matches.true_positive, matches.false_positive], ["tp", "fp"], "ignored")[shown].tolist()
    labels, scores = matches.labels[shown], matches.scores[shown]
    texts = [
        f"{classes[label]} {score:.2f}" + (" ✗" if outcome == "fp" else "")
        for label, score, outcome in zip(labels, scores, outcomes, strict=True)
    ]
    return Drawing(
        key=key,
        width=round(size[0], 1),
        height=round(size[1], 1),
        scale=scale,
        jpeg=data_url(image, quality=80),
        objects=_marks(
            record.boxes[order] * scale,
            [classes[label] for label in record.labels[order]],
            record.labels[order],
            matches.matched_scores[order],
            ["object" if counted else "ignored" for counted in matches.counted[order]],
            size,
        ),
        detections=_marks(matches.boxes[shown] * scale, texts, labels, scores, outcomes, size),
        labels=frozenset({*record.labels.tolist(), *labels.tolist()}),
    )


def data_url(image: Image.Image, quality: int = 88) -> str:
    """Encode an image as a JPEG data URL."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0 if quality > 85 else 2, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _marks(
    boxes: NDArray[np.floating],
    texts: Sequence[str],
    labels: NDArray[np.integer],
    scores: NDArray[np.floating],
    outcomes: Sequence[str],
    canvas: tuple[float, float],
) -> tuple[BoxMark, ...]:
    corners: list[Rectangle] = [tuple(box) for box in np.clip(boxes, 0, np.tile(canvas, 2)).tolist()]
    widths = [len(text) * LETTER_WIDTH + 8 for text in texts]
    plates = place_labels(corners, [(width, float(PLATE_HEIGHT)) for width in widths], canvas)
    marks = []
    for i, (x1, y1, x2, y2) in enumerate(corners):
        color = IGNORED_BOX_COLOR if outcomes[i] == "ignored" else class_color(int(labels[i]))
        marks.append(
            BoxMark(
                box=(round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1)),
                text=texts[i],
                plate=(round(plates[i][0], 1), round(plates[i][1], 1), round(widths[i], 1)),
                color=color,
                ink=contrast(color),
                score=round(float(scores[i]), 4),
                outcome=outcomes[i],
            )
        )
    return tuple(marks)
