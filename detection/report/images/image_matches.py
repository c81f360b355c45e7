"""Test images with their ground truth and their matched detections."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index, Record
from detection.errors import DataError
from detection.evaluation.analysis.error_types import MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts at IoU 0.5, without difficult and crowd objects."""

    true_positives: int
    false_positives: int
    missed: int

    def __str__(self) -> str:
        return f"{self.true_positives} TP, {self.false_positives} FP, {self.missed} missed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageMatches:
    """One image; letters: M objects, D detections."""

    record: Record
    """Image file and ground truth."""
    counted: NDArray[np.bool_]
    """[M] neither difficult nor crowd."""
    matched_scores: NDArray[np.float64]
    """[M] score of the true positive of each object; -1 without one."""
    boxes: NDArray[np.float32]
    """[D, 4] `x1, y1, x2, y2` in absolute pixels, in decreasing order of scores."""
    labels: NDArray[np.int64]
    """[D]."""
    scores: NDArray[np.float32]
    """[D]."""
    true_positive: NDArray[np.bool_]
    """[D]."""
    false_positive: NDArray[np.bool_]
    """[D]; a detection that is neither matches an object that is not counted."""

    def count(self, score: float) -> Counts:
        """Count true positives, false positives and missed objects at a score threshold."""
        kept = self.scores >= score
        missed = self.counted & (self.matched_scores < score)
        true_positives, false_positives = self.true_positive & kept, self.false_positive & kept
        return Counts(int(true_positives.sum()), int(false_positives.sum()), int(missed.sum()))


def read_detections(reports: Path, index: Index) -> SplitDetections | None:
    """Read `evaluation/tables/detections.json`; None before `evaluate`.

    Raises:
        DataError: It has images or categories that the index has not.
    """
    path = reports / "evaluation/tables/detections.json"
    if not path.is_file():
        return None
    try:
        return SplitDetections.from_coco(index, msgspec.json.decode(path.read_bytes()))
    except KeyError as error:
        raise DataError(f"{path}: the id {error} is not in data/prepared; run dvc repro evaluate") from None


def match_images(
    index: Index, detections: SplitDetections, rows: Sequence[int], num_classes: int
) -> dict[int, ImageMatches]:
    """Match detections to objects by COCO's rules at IoU 0.5, on some images only.

    Args:
        index: Split.
        detections: Detections on the split.
        rows: Distinct indices of images.
        num_classes: Number of classes.

    Returns:
        Matches by index of the image.
    """
    position = np.full(len(index), -1)
    position[list(rows)] = np.arange(len(rows))
    selected = detections.select(position[detections.images] >= 0)
    selected = replace(selected, images=position[selected.images])
    subset = index.select(np.asarray(rows, dtype=np.int64))
    overlaps = Overlaps.of_index(subset, selected, num_classes)
    result = MatchResult.of(overlaps, match(overlaps))

    true_positive, false_positive = np.zeros((2, len(selected)), dtype=np.bool_)
    true_positive[overlaps.detection_order] = result.true_positive
    false_positive[overlaps.detection_order] = result.false_positive
    matched_scores = np.full(len(subset.labels), -1.0)
    hits = np.flatnonzero(result.true_positive)
    matched_scores[overlaps.object_order[result.object[hits]]] = overlaps.predictions.scores[hits]
    matches = {}
    for number, row in enumerate(rows):
        objects = slice(int(subset.offsets[number]), int(subset.offsets[number + 1]))
        here = np.flatnonzero(selected.images == number)
        here = here[np.argsort(-selected.scores[here], kind="stable")]
        record = subset[number]
        matches[row] = ImageMatches(
            record=record,
            counted=~(record.difficult | record.crowd),
            matched_scores=matched_scores[objects],
            boxes=selected.boxes[here],
            labels=selected.labels[here],
            scores=selected.scores[here],
            true_positive=true_positive[here],
            false_positive=false_positive[here],
        )
    return matches
