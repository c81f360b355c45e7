import numpy as np
import pytest

from detection.data.loading.index import Record, pack
from detection.evaluation.protocol.results import SplitDetections
from detection.report.images.image_matches import Counts, match_images


def record(number: int, boxes: list[list[float]], difficult: tuple[bool, ...] = ()) -> Record:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(corners), dtype=bool)
    return Record(
        file=f"{number}.png",
        id=str(number),
        height=100,
        width=200,
        boxes=corners,
        labels=np.zeros(len(corners), dtype=np.int64),
        difficult=np.array(difficult, dtype=bool) if difficult else flags,
        crowd=flags,
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
    )


def test_images_are_matched_alone_and_counted_at_any_score() -> None:
    objects = [[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 90.0, 90.0], [100.0, 0.0, 150.0, 50.0]]
    index = pack([record(0, objects, (False, False, True)), record(1, []), record(2, objects[:1])])
    boxes = [objects[0], objects[0], objects[1], objects[2], [150.0, 60.0, 190.0, 90.0], objects[0]]
    detections = SplitDetections.pack([0, 0, 0, 0, 1, 2], boxes, [0.9, 0.8, 0.4, 0.9, 0.6, 0.7], [0] * 6)
    matches = match_images(index, detections, [1, 0], 1)
    assert list(matches) == [1, 0]
    assert matches[0].count(0.5) == Counts(true_positives=1, false_positives=1, missed=1)
    assert matches[0].count(0.3) == Counts(true_positives=2, false_positives=1, missed=0)
    assert matches[1].count(0.5) == Counts(true_positives=0, false_positives=1, missed=0)
    assert matches[0].matched_scores.tolist() == pytest.approx([0.9, 0.4, -1])
    assert matches[0].scores.tolist() == pytest.approx([0.9, 0.9, 0.8, 0.4])
    assert match_images(index, detections, [], 1) == {}
