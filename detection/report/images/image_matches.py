"""Pictures of the test split with what is there, what was found, and what is right and wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index, Record
from detection.errors import DataError
from detection.evaluation.analysis.error_types import MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts at IoU 0.5, difficult and crowd objects left out."""

    right: int
    wrong: int
    missed: int

    def __str__(self) -> str:
        return f"{self.right} right, {self.wrong} wrong, {self.missed} missed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageMatches:
    """One picture; letters: M objects, D detections."""

    record: Record
    """The picture and its objects."""
    counted: NDArray[np.bool_]
    """[M] neither difficult nor crowd."""
    found_at: NDArray[np.float64]
    """[M] score of the detection that finds each object; -1: none does."""
    boxes: NDArray[np.float32]
    """[D, 4] `x1, y1, x2, y2` in the picture's pixels; the best score first."""
    labels: NDArray[np.int64]
    """[D]."""
    scores: NDArray[np.float32]
    """[D]."""
    right: NDArray[np.bool_]
    """[D]."""
    wrong: NDArray[np.bool_]
    """[D]; neither: on an object that does not count."""

    def tally(self, score: float) -> Tally:
        """What detections of at least this score make of the picture."""
        kept = self.scores >= score
        missed = self.counted & (self.found_at < score)
        return Tally(int((self.right & kept).sum()), int((self.wrong & kept).sum()), int(missed.sum()))


def read_detections(reports: Path, index: Index) -> SplitDetections | None:
    """`evaluation/detections.json`; None before `evaluate`.

    Raises:
        DataError: It was made on other pictures.
    """
    path = reports / "evaluation/detections.json"
    if not path.is_file():
        return None
    try:
        return SplitDetections.from_coco(index, msgspec.json.decode(path.read_bytes()))
    except KeyError as error:
        raise DataError(
            f"{path} has a picture {error} that data/prepared has not; run dvc repro evaluate"
        ) from None


def judge(
    index: Index, results: SplitDetections, rows: Sequence[int], classes: int
) -> dict[int, ImageMatches]:
    """Judge some pictures by COCO's matching at IoU 0.5, which looks at each picture alone.

    Args:
        index: The split.
        results: Detections on it.
        rows: Pictures, each once.
        classes: How many there are.
    """
    place = np.full(len(index), -1)
    place[list(rows)] = np.arange(len(rows))
    mine = results.select(place[results.images] >= 0)
    mine = SplitDetections(place[mine.images], mine.boxes, mine.scores, mine.labels)
    some = index.select(np.asarray(rows, dtype=np.int64))
    overlaps = Overlaps.of_index(some, mine, classes)
    verdicts = MatchResult.of(overlaps, match(overlaps))

    right, wrong = np.zeros((2, len(mine)), dtype=np.bool_)
    right[overlaps.detection_order], wrong[overlaps.detection_order] = (
        verdicts.true_positive,
        verdicts.false_positive,
    )
    found_at = np.full(len(some.labels), -1.0)
    hits = np.flatnonzero(verdicts.true_positive)
    found_at[overlaps.object_order[verdicts.object[hits]]] = overlaps.predictions.scores[hits]
    judged = {}
    for number, row in enumerate(rows):
        objects = slice(int(some.offsets[number]), int(some.offsets[number + 1]))
        here = np.flatnonzero(mine.images == number)
        here = here[np.argsort(-mine.scores[here], kind="stable")]
        record = some[number]
        judged[row] = ImageMatches(
            record=record,
            counted=~(record.difficult | record.crowd),
            found_at=found_at[objects],
            boxes=mine.boxes[here],
            labels=mine.labels[here],
            scores=mine.scores[here],
            right=right[here],
            wrong=wrong[here],
        )
    return judged
