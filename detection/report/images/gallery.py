"""The page's galleries: the pictures that `evaluation/hard_examples.json` says to look at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.index import Index
from detection.data.prepared import Prepared
from detection.evaluation.protocol.results import SplitDetections
from detection.report.images import svg_boxes
from detection.report.images.boxes_on_image import class_colour
from detection.report.images.image_matches import ImageMatches, Tally, judge
from detection.report.images.svg_boxes import Drawing
from detection.report.readers import read_json

WHY = {
    "unlabeled": "said with confidence, and no object is labelled there",
    "other class": "said with confidence, and labelled as another class",
    "undetected": "labelled, and nothing is found there with any score",
}
"""Kinds of suspects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One picture of a gallery."""

    drawing: Drawing
    picture: str
    """Its id in the dataset."""
    file: str
    tally: Tally
    notes: tuple[str, ...]
    """Why it is here."""
    rings: tuple[tuple[float, float, float, float], ...]
    """What to look at: left, top, width, height in the drawing's units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Pictures that have something in common."""

    name: str
    title: str
    text: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Album:
    """All galleries."""

    score: float
    """Where the slider begins."""
    galleries: tuple[Gallery, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    """Name and colour of each class that occurs."""

    def drawings(self) -> list[Drawing]:
        """Each picture once, however many galleries show it."""
        every = (card.drawing for gallery in self.galleries for card in gallery.cards)
        return list({drawing.key: drawing for drawing in every}.values())


def typical(index: Index, count: int) -> list[int]:
    """Rows from the whole length of a split, the same ones for every detector."""
    filled = np.flatnonzero(np.diff(index.offsets))
    if len(filled) == 0 or count <= 0:
        return []
    rows: list[int] = filled[
        np.unique(np.linspace(0, len(filled) - 1, min(count, len(filled))).astype(int))
    ].tolist()
    return rows


def build(
    reports: Path, prepared: Prepared, index: Index, results: SplitDetections, score: float, count: int
) -> Album:
    """Draw the galleries.

    Args:
        reports: The folder of all reports.
        prepared: Where the pictures lie, and the names of classes.
        index: The test split.
        results: Detections on it.
        score: Where the slider begins.
        count: Most pictures of each gallery.

    Raises:
        DataError: A picture cannot be read.
    """
    lists = read_json(reports / "evaluation/hard_examples.json")
    row_of = {name.decode(): row for row, name in enumerate(index.ids)}
    plans = [
        (name, title, text, _grouped(items, row_of, count))
        for name, title, text, items in _plans(lists)
        if items and count > 0
    ]
    spread = typical(index, count)
    plans.append(("typical", *TYPICAL, {row: [] for row in spread}))
    rows = sorted({row for plan in plans for row in plan[3]})
    judged = judge(index, results, rows, len(prepared.classes))
    drawings = {row: svg_boxes.draw(judged[row], prepared.root, prepared.classes, f"p{row}") for row in rows}
    labels = sorted(frozenset(chain.from_iterable(drawing.labels for drawing in drawings.values())))
    return Album(
        score=score,
        galleries=tuple(
            Gallery(
                name=name,
                title=title,
                text=text,
                cards=tuple(_card(judged[row], drawings[row], items, score) for row, items in chosen.items()),
            )
            for name, title, text, chosen in plans
            if chosen
        ),
        legend=tuple((prepared.classes[label], class_colour(label)) for label in labels),
    )


TYPICAL = (
    "A cross-section",
    "Pictures from the whole length of the test split, the same for every detector: what to expect.",
)


def _plans(lists: dict[str, Any]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Name, title, what to do, and rows of `hard_examples.json` with a `note`."""
    worst = [row | {"note": _of_worst(row)} for row in lists.get("worst", [])]
    wrong = [
        row | {"note": f"{row['class']} {row['score']:.2f}: {row['error_type']}"}
        for row in lists.get("confident_false_positives", [])
    ]
    missed = [
        row | {"note": f"missed {row['class']}, {row['box'][2]:.0f} by {row['box'][3]:.0f} px"}
        for row in lists.get("largest_missed", [])
    ]
    kinds = [
        [
            row | {"note": _of_suspect(row)}
            for row in lists.get("suspected_label_errors", [])
            if row["reason"] == why
        ]
        for why in WHY
    ]
    suspects = [row for row in chain.from_iterable(zip_longest(*kinds)) if row]
    return [
        (
            "worst",
            "Worst pictures",
            "Ordered by how much of the average precision their errors cost. What many of them share is what "
            "the training data or the recipe lacks.",
            worst,
        ),
        (
            "confident",
            "Most confident mistakes",
            "Wrong detections with the highest scores, ringed. Is the detector wrong, or the label?",
            wrong,
        ),
        (
            "missed",
            "Largest missed objects",
            "Ringed: what no detection above the threshold finds. Large objects are rarely missed for lack "
            "of pixels: look for odd poses, occlusion, or classes that are taken for another.",
            missed,
        ),
        (
            "suspects",
            "Suspected label errors",
            "Ringed: where detector and labels disagree in a way that often means that the label is wrong. "
            "Check them before training longer, and mend the data where they are.",
            suspects,
        ),
    ]


def _of_worst(row: dict[str, Any]) -> str:
    parts = [
        f"{row[key]:.4f} by {name}"
        for key, name in (
            ("loss_by_false_positives", "wrong detections"),
            ("loss_by_missed", "missed objects"),
        )
        if row[key] >= 5e-5
    ]
    return f"costs {row['AP50_loss']:.4f} of AP50" + (": " + ", ".join(parts) if len(parts) > 1 else "")


def _of_suspect(row: dict[str, Any]) -> str:
    if row["reason"] == "unlabeled":
        return f"{row['class']} {row['score']:.2f}, not labelled?"
    if row["reason"] == "other class":
        return f"labelled {row['labeled_as']}, said {row['class']} {row['score']:.2f}"
    return f"labelled {row['class']}, nothing finds it"


def _grouped(
    items: Iterable[dict[str, Any]], row_of: dict[str, int], count: int
) -> dict[int, list[dict[str, Any]]]:
    """The first pictures that occur, each with all that is said of it."""
    chosen: dict[int, list[dict[str, Any]]] = {}
    for item in items:
        row = row_of.get(item["image"])
        if row is not None and (row in chosen or len(chosen) < count):
            chosen.setdefault(row, []).append(item)
    return chosen


def _card(judged: ImageMatches, drawing: Drawing, items: Sequence[dict[str, Any]], score: float) -> Card:
    boxes = [item["box"] for item in items if "box" in item]
    rings = dict.fromkeys(tuple(round(side * drawing.scale, 1) for side in box) for box in boxes)
    return Card(
        drawing=drawing,
        picture=judged.record.id,
        file=judged.record.file,
        tally=judged.tally(score),
        notes=tuple(dict.fromkeys(item["note"] for item in items)),
        rings=tuple((left, top, width, height) for left, top, width, height in rings),
    )
