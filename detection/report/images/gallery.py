"""Image galleries of the page, from `evaluation/tables/hard_examples.json`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.loading.index import Index
from detection.data.loading.prepared import Prepared
from detection.evaluation.protocol.results import SplitDetections
from detection.files import read_json
from detection.report.images.contact_sheet import Rectangle, class_color
from detection.report.images.image_matches import Counts, ImageMatches, match_images
from detection.report.images.svg_boxes import Drawing, draw_image

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
    reports: Path, prepared: Prepared, index: Index, detections: SplitDetections, score: float, count: int
) -> Album:
    """Draw the galleries.

    Args:
        reports: Folder of all reports.
        prepared: Prepared dataset: image folder and class names.
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
    matches = match_images(index, detections, rows, len(prepared.classes))
    drawings = {row: draw_image(matches[row], prepared.root, prepared.classes, f"i{row}") for row in rows}
    labels = sorted(frozenset(chain.from_iterable(drawing.labels for drawing in drawings.values())))
    galleries = []
    for name, images in selected.items():
        if images:
            cards = tuple(_card(matches[row], drawings[row], items, score) for row, items in images.items())
            galleries.append(Gallery(name, *TITLES[name], cards))
    legend = tuple((prepared.classes[label], class_color(label)) for label in labels)
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
