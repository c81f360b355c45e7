"""The one sparse pass over a split: which detection overlaps which object of its class.

COCO's scores, VOC's scores, error types and the confusion matrix all read the pairs found here. Boxes are
`x, y, width, height` in float64 and every IoU is computed in pycocotools' order of operations, so that its
numbers are met to the last bit.

Letters: D detections, T objects, P pairs of a detection and an object that overlap.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.evaluation.protocol.ordering import best_first, blocks, ranges, runs
from detection.evaluation.protocol.results import SplitDetections


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroundTruth:
    """The objects of a split, those of one picture and class in the order of their file."""

    images: NDArray[np.int64]
    """[T] pictures, numbered in the order of their ids: it decides between equal scores."""
    labels: NDArray[np.int64]
    """[T] classes from 0."""
    boxes: NDArray[np.float64]
    """[T, 4] `x, y, width, height`."""
    areas: NDArray[np.float64]
    """[T] what the annotation says, of the segmentation where there is one."""
    ignored: NDArray[np.bool_]
    """[T] crowds and difficult objects: need not be found, and a detection on one is not wrong."""

    def take(self, rows: NDArray[np.int64] | slice) -> "GroundTruth":
        """Some objects, in the given order."""
        return GroundTruth(**{field.name: _take(getattr(self, field.name), rows) for field in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """The detections on a split."""

    images: NDArray[np.int64]
    """[D], as in `GroundTruth`."""
    labels: NDArray[np.int64]
    """[D]."""
    boxes: NDArray[np.float64]
    """[D, 4] `x, y, width, height`."""
    scores: NDArray[np.float64]
    """[D] finite."""

    def take(self, rows: NDArray[np.int64] | slice) -> "Predictions":
        """Some detections, in the given order."""
        return Predictions(**{field.name: _take(getattr(self, field.name), rows) for field in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlaps:
    """Objects and detections in order of picture and class, and their pairs."""

    truth: GroundTruth
    """Sorted by picture and class."""
    found: Predictions
    """Sorted by picture and class, then the best score first; equal scores as they came."""
    classes: int
    """How many there are; labels are below it."""
    rank: NDArray[np.int64]
    """[D] place of a detection among those of its picture and class, from 0."""
    rows: NDArray[np.int64]
    """[D] where each detection stood before it was sorted."""
    objects: NDArray[np.int64]
    """[T] where each object stood before it was sorted."""
    detection: NDArray[np.int64]
    """[P] rows of `found`, rising; a pair shares picture, class and some area."""
    object: NDArray[np.int64]
    """[P] rows of `truth`, rising within a detection."""
    iou: NDArray[np.float64]
    """[P] intersection over union."""
    cover: NDArray[np.float64]
    """[P] what COCO compares with its thresholds: the IoU, and with an ignored object the share of the
    detection that lies in it."""

    @cached_property
    def by_score(self) -> NDArray[np.int64]:
        """[D] rows of `found`, class after class, the best score first; equal ones by picture, then rank."""
        return best_first(self.found.labels, self.found.scores)

    @classmethod
    def of(cls, truth: GroundTruth, found: Predictions, classes: int) -> "Overlaps":
        """Sort both sides and find the pairs."""
        key_of_truth, key_of_found = _keys(truth, classes), _keys(found, classes)
        objects = np.argsort(key_of_truth, kind="stable")
        rows = best_first(key_of_found, found.scores)
        truth, key_of_truth = truth.take(objects), key_of_truth.take(objects)
        found, key_of_found = found.take(rows), key_of_found.take(rows)
        starts = runs(key_of_found)  # of each picture and class
        first = starts[:-1]
        start = np.searchsorted(key_of_truth, key_of_found[first], side="left")
        count = np.searchsorted(key_of_truth, key_of_found[first], side="right") - start
        rank, none = np.empty(len(rows), dtype=np.int64), np.zeros(0, dtype=np.int64)
        parts = [_overlapping(truth, found, none, none)]
        for low, high in blocks(starts):
            row, each = int(starts[low]), np.diff(starts[low : high + 1])
            rank[row : starts[high]] = np.arange(row, starts[high]) - np.repeat(first[low:high], each)
            for left, thing in ranges(np.repeat(start[low:high], each), np.repeat(count[low:high], each)):
                parts.append(_overlapping(truth, found, row + left, thing))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(
            truth=truth,
            found=found,
            classes=classes,
            rank=rank,
            rows=rows,
            objects=objects,
            detection=columns[0],
            object=columns[1],
            iou=columns[2],
            cover=columns[3],
        )

    def parts(self) -> Iterator[tuple["Overlaps", slice, int]]:
        """The same in parts of whole pictures with about `BLOCK` detections each, rows counted anew in each.

        Yields:
            A part, its rows among the detections, and the row of its first object.
        """
        images = self.found.images
        starts = runs(images)
        for begins, ends in blocks(starts):
            low, high = starts[[begins, ends]].tolist()
            first = int(np.searchsorted(self.truth.images, images[low], side="left"))
            last = int(np.searchsorted(self.truth.images, images[high - 1], side="right"))
            pairs = slice(*np.searchsorted(self.detection, (low, high)).tolist())
            rows = slice(low, high)
            part = replace(
                self,
                truth=self.truth.take(slice(first, last)),
                found=self.found.take(rows),
                rank=self.rank[rows],
                rows=self.rows[rows],
                objects=self.objects[first:last],
                detection=self.detection[pairs] - low,
                object=self.object[pairs] - first,
                iou=self.iou[pairs],
                cover=self.cover[pairs],
            )
            yield part, rows, first

    @classmethod
    def of_index(cls, index: Index, results: SplitDetections, classes: int) -> "Overlaps":
        """Pairs of a packed index and detections on it; difficult objects and crowds are ignored alike."""
        place = np.argsort(picture_order(index), kind="stable")
        truth = GroundTruth(
            images=place[np.repeat(np.arange(len(index)), np.diff(index.offsets))],
            labels=index.labels,
            boxes=_xywh(index.boxes),
            areas=index.areas.astype(np.float64),
            ignored=index.difficult | index.crowd,
        )
        found = Predictions(
            images=place[results.images],
            labels=results.labels,
            boxes=_xywh(results.boxes),
            scores=results.scores.astype(np.float64),
        )
        return cls.of(truth, found, classes)


def picture_order(index: Index) -> NDArray[np.int64]:
    """[N] rows of an index in the order in which its overlaps number the pictures: that of their ids."""
    return np.argsort(index.image_ids(), kind="stable")


def best_of_each(
    detection: NDArray[np.int64], thing: NDArray[np.int64], iou: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of pairs sorted by detection, each detection's greatest IoU and the first object that has it.

    Args:
        detection: [P], rising.
        thing: [P].
        iou: [P].
        count: D.

    Returns:
        [D] IoU, and [D] object; 0 and -1 for a detection without a pair.
    """
    best, taken = np.zeros(count), np.full(count, -1)
    if len(detection):
        starts = np.flatnonzero(np.diff(detection, prepend=-1))
        greatest = np.maximum.reduceat(iou, starts)
        lengths = np.diff(starts, append=len(detection))
        number = np.where(iou == np.repeat(greatest, lengths), np.arange(len(iou)), len(iou))
        best[detection[starts]] = greatest
        taken[detection[starts]] = thing[np.minimum.reduceat(number, starts)]
    return best, taken


def intersections(
    found: Predictions, truth: GroundTruth, detection: NDArray[np.int64], thing: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Of some pairs, those that share some area: detection, object, and that area; `bbIou` of maskApi.c."""
    x, y, w, h = (found.boxes[detection, side] for side in range(4))
    gx, gy, gw, gh = (truth.boxes[thing, side] for side in range(4))
    width = np.minimum(w + x, gw + gx) - np.maximum(x, gx)
    height = np.minimum(h + y, gh + gy) - np.maximum(y, gy)
    kept = np.flatnonzero((width > 0) & (height > 0))
    return detection[kept], thing[kept], width[kept] * height[kept]


def union(
    found: Predictions,
    truth: GroundTruth,
    detection: NDArray[np.int64],
    thing: NDArray[np.int64],
    common: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[P] area that either box of a pair covers."""
    return _area(found.boxes[detection]) + _area(truth.boxes[thing]) - common


def _overlapping(
    truth: GroundTruth, found: Predictions, detection: NDArray[np.int64], thing: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    detection, thing, common = intersections(found, truth, detection, thing)
    iou = common / union(found, truth, detection, thing, common)
    inside = common / _area(found.boxes[detection])
    return detection, thing, iou, np.where(truth.ignored[thing], inside, iou)


def _take(column: NDArray[Any], rows: NDArray[np.int64] | slice) -> NDArray[Any]:
    """`column[rows]`; for rows of boxes `take` is four times as fast."""
    return column[rows] if isinstance(rows, slice) else column.take(rows, axis=0)


def _keys(side: GroundTruth | Predictions, classes: int) -> NDArray[np.int64]:
    """A number for each picture and class; added in place, as fresh memory costs more than the sums."""
    keys: NDArray[np.int64] = side.images * classes
    keys += side.labels
    return keys


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = boxes[:, 2] * boxes[:, 3]
    return area


def _xywh(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    return wide
