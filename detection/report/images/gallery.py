"""Image galleries of the page, from `evaluation/tables/hard_examples.json`.

An image and its boxes are SVG elements: sharp at every size, filtered by score.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.data.loading.image_io import decode
from detection.data.loading.index import Index
from detection.evaluation.protocol.results import SplitDetections
from detection.files import read_json
from detection.report.images.contact_sheet import Rectangle, class_color, contrast, place_labels
from detection.report.images.image_matches import Counts, ImageMatches, match_images

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
    image = decode(root / record.file, (record.height, record.width), upright=record.upright)
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


LABEL_ERROR_REASONS = ("unlabeled", "other class", "undetected")
TITLES = {
    "worst": ("Largest loss of AP", "Images ranked by the loss of AP50 that their errors cause."),
    "confident": (
        "Most confident false positives",
        "Marked: false positives with the highest scores. The detector or the label may be wrong.",
    ),
    "missed": (
        "Largest missed objects",
        "Marked: objects that no detection above the threshold matches. Large objects are rarely missed "
        "for lack of resolution: look for unusual poses, occlusion and confused classes.",
    ),
    "suspects": (
        "Suspected label errors",
        "Marked: disagreements between detections and labels that often are label errors. Check these labels "
        "before training longer.",
    ),
    "typical": ("Sample", "Images at regular intervals of the test split, the same for every detector."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One image of a gallery."""

    drawing: Drawing
    image: str
    """Image id in the dataset."""
    file: str
    counts: Counts
    notes: tuple[str, ...]
    """Reasons for showing it."""
    highlights: tuple[Rectangle, ...]
    """Marked boxes: left, top, width, height in the drawing's units."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images with something in common."""

    name: str
    title: str
    text: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Album:
    """All galleries."""

    score: float
    """Initial score threshold of the slider."""
    galleries: tuple[Gallery, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    """Name and color of each class that occurs."""

    def drawings(self) -> list[Drawing]:
        """Each image once, even if several galleries show it."""
        every = (card.drawing for gallery in self.galleries for card in gallery.cards)
        return list({drawing.key: drawing for drawing in every}.values())


def sample_rows(index: Index, count: int) -> list[int]:
    """Indices of images with objects at regular intervals of a split, the same for every detector."""
    with_objects = np.flatnonzero(np.diff(index.offsets))
    if len(with_objects) == 0 or count <= 0:
        return []
    positions = np.linspace(0, len(with_objects) - 1, min(count, len(with_objects))).astype(int)
    rows: list[int] = with_objects[np.unique(positions)].tolist()
    return rows


def build_album(
    reports: Path,
    root: Path,
    classes: Sequence[str],
    index: Index,
    detections: SplitDetections,
    score: float,
    count: int,
) -> Album:
    """Draw the galleries.

    Args:
        reports: Folder of all reports.
        root: Folder of the images.
        classes: Names, in label order.
        index: Test split.
        detections: Detections on it.
        score: Initial score threshold of the slider.
        count: Maximum number of images per gallery.

    Raises:
        DataError: An image cannot be read.
    """
    row_of = {name.decode(): row for row, name in enumerate(index.ids)}
    lists = _noted_lists(read_json(reports / "evaluation/tables/hard_examples.json"))
    selected = {name: _by_image(items, row_of, count) for name, items in lists.items()}
    selected["typical"] = {row: [] for row in sample_rows(index, count)}
    rows = sorted(frozenset(chain.from_iterable(selected.values())))
    matches = match_images(index, detections, rows, len(classes))
    drawings = {row: draw_image(matches[row], root, classes, f"i{row}") for row in rows}
    labels = sorted(frozenset(chain.from_iterable(drawing.labels for drawing in drawings.values())))
    galleries = []
    for name, images in selected.items():
        if images:
            cards = tuple(_card(matches[row], drawings[row], items, score) for row, items in images.items())
            galleries.append(Gallery(name, *TITLES[name], cards))
    legend = tuple((classes[label], class_color(label)) for label in labels)
    return Album(score, tuple(galleries), legend)


def _noted_lists(lists: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of `hard_examples.json` by gallery, with a `note`; label errors of each reason alternate."""
    suspects = lists.get("suspected_label_errors", [])
    by_reason = [[row for row in suspects if row["reason"] == reason] for reason in LABEL_ERROR_REASONS]
    return {
        "worst": [row | {"note": _loss_note(row)} for row in lists.get("worst", [])],
        "confident": [
            row | {"note": f"{row['class']} {row['score']:.2f}: {row['error_type']}"}
            for row in lists.get("confident_false_positives", [])
        ],
        "missed": [
            row | {"note": f"missed {row['class']}, {row['box'][2]:.0f} × {row['box'][3]:.0f} px"}
            for row in lists.get("largest_missed", [])
        ],
        "suspects": [
            row | {"note": _label_error_note(row)}
            for row in chain.from_iterable(zip_longest(*by_reason))
            if row is not None
        ],
    }


def _loss_note(row: dict[str, Any]) -> str:
    by_false_positives, by_missed = row["loss_by_false_positives"], row["loss_by_missed"]
    return f"AP50 −{by_false_positives:.4f} by false positives, −{by_missed:.4f} by missed objects"


def _label_error_note(row: dict[str, Any]) -> str:
    if row["reason"] == "unlabeled":
        return f"{row['class']} {row['score']:.2f}: unlabeled object?"
    if row["reason"] == "other class":
        return f"labeled {row['labeled_as']}, predicted {row['class']} {row['score']:.2f}"
    return f"labeled {row['class']}, no detection at any score"


def _by_image(items: Iterable[dict[str, Any]], row_of: dict[str, int], count: int) -> dict[int, list[dict[str, Any]]]:
    """The first images that occur, each with all its items."""
    selected: dict[int, list[dict[str, Any]]] = {}
    for item in items:
        row = row_of.get(item["image"])
        if row is not None and (row in selected or len(selected) < count):
            selected.setdefault(row, []).append(item)
    return selected


def _card(matches: ImageMatches, drawing: Drawing, items: Sequence[dict[str, Any]], score: float) -> Card:
    boxes = [item["box"] for item in items if "box" in item]
    highlights = dict.fromkeys(tuple(round(side * drawing.scale, 1) for side in box) for box in boxes)
    return Card(
        drawing=drawing,
        image=matches.record.id,
        file=matches.record.file,
        counts=matches.count(score),
        notes=tuple(dict.fromkeys(item["note"] for item in items)),
        highlights=tuple((left, top, width, height) for left, top, width, height in highlights),
    )
