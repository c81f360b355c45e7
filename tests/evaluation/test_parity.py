"""Every number of ours against pycocotools', with no tolerance at all."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from detection.data.index import Index
from detection.errors import VerificationError
from detection.evaluation import coco, official, overlaps
from detection.evaluation.accumulate import Arrays
from detection.evaluation.coco import CocoScore
from detection.evaluation.matching import match
from detection.evaluation.overlaps import Found, Overlaps, Truth
from detection.evaluation.results import Results

PICTURES, CLASSES = 6, 5
"""The last class never occurs, the one before has no objects."""


def scene(seed: int) -> tuple[Truth, Found]:
    """Objects and detections full of what goes wrong: ties, crowds, copies, nothing, and 32 px on the dot."""
    rng = np.random.default_rng(seed)
    objects, detections = int(rng.integers(0, 40)), int(rng.integers(0, 130))

    def boxes(count: int) -> np.ndarray:
        if rng.random() < 0.5:  # a coarse grid: equal overlaps, copies, boxes without area
            return rng.integers(0, 12, (count, 4)) * float(rng.choice([1, 8, 16]))
        return np.concatenate([rng.uniform(0, 60, (count, 2)), rng.uniform(0, 80, (count, 2))], axis=1)

    truth_boxes, found_boxes = boxes(objects), boxes(detections)
    truth = Truth(
        images=rng.integers(0, PICTURES, objects),
        labels=rng.integers(0, CLASSES - 2, objects),
        boxes=truth_boxes,
        areas=truth_boxes[:, 2] * truth_boxes[:, 3] * rng.choice([0.5, 1, 1.7], objects),
        ignored=rng.random(objects) < 0.2,
    )
    images, labels = rng.integers(0, PICTURES, detections), rng.integers(0, CLASSES - 1, detections)
    if objects:  # two thirds lie near an object
        near = rng.integers(0, objects, detections * 2 // 3)
        jitter = rng.choice([0, 0, 1, 2, -1, 4], (len(near), 4))
        found_boxes[: len(near)] = truth.boxes[near] + jitter
        images[: len(near)], labels[: len(near)] = truth.images[near], truth.labels[near]
    found_boxes[:, 2:] = np.maximum(found_boxes[:, 2:], 0)
    scores = rng.integers(0, 6, detections) / 5 if seed % 2 else rng.random(detections)
    return truth, Found(images=images, labels=labels, boxes=found_boxes, scores=scores)


def crowded(seed: int) -> tuple[Truth, Found]:
    """More than 100 detections of one class on one picture."""
    truth, found = scene(seed)
    rng = np.random.default_rng(seed + 10_000)
    rows = rng.integers(0, max(len(found.scores), 1), 260 if len(found.scores) else 0)
    many = found.take(rows)
    return truth, Found(
        images=np.zeros(len(rows), dtype=np.int64),
        labels=np.zeros(len(rows), dtype=np.int64),
        boxes=many.boxes,
        scores=rng.integers(0, 40, len(rows)) / 40,
    )


def assert_same(truth: Truth, found: Found) -> CocoScore:
    pairs = Overlaps.of(truth, found, CLASSES)
    ours = coco.score_matches(pairs, match(pairs))
    theirs = official.score(truth, found, CLASSES)
    assert np.array_equal(list(ours.stats.values()), list(theirs.stats.values()), equal_nan=True)
    for name in Arrays._fields:
        assert np.array_equal(getattr(ours.arrays, name), getattr(theirs.arrays, name)), name
    for label, mine in enumerate(ours.per_class["AP"]):  # as everybody reads a class off the array
        known = theirs.arrays.precision[:, :, label, 0, -1]
        assert np.array_equal(
            mine, known[known > -1].mean() if (known > -1).any() else np.nan, equal_nan=True
        )
    return ours


@pytest.mark.parametrize("start", range(0, 280, 20))
def test_280_scenes(start: int) -> None:
    scored = [assert_same(*scene(seed)) for seed in range(start, start + 20)]
    assert sum(0 < one.stats["AP"] < 1 for one in scored) > 10, "the scenes test something"


def test_20_scenes_of_more_than_100_detections() -> None:
    for seed in range(20):
        assert_same(*crowded(seed))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [assert_same(*scene(seed)) for seed in range(5)]
    monkeypatch.setattr(overlaps, "BLOCK", 7)
    for seed, one in enumerate(whole):
        assert assert_same(*scene(seed)).stats["AP"] == pytest.approx(one.stats["AP"], abs=0, nan_ok=True)


def test_order_of_pictures_is_that_of_their_ids(make_index: Callable[..., Index]) -> None:
    """Equal scores on two pictures: whose comes first decides the precision."""
    box = [[0, 0, 50, 50]]
    index = make_index((box, [0]), ([], []))
    results = Results.pack([0, 1], box * 2, [0.5, 0.5], [0, 0])
    assert coco.score(index, results, "a").stats["AP50"] == pytest.approx(1)
    swapped = replace(index, ids=np.array([b"9", b"3"]))
    assert coco.score(swapped, results, "a").stats["AP50"] == pytest.approx(0.5)


def test_a_difference_is_reported() -> None:
    truth, found = scene(1)
    pairs = Overlaps.of(truth, found, CLASSES)
    ours = coco.score_matches(pairs, match(pairs))
    official.verify(pairs, ours)
    ours.arrays.scores[0, 0, 0, 0, 0] += 1e-15
    with pytest.raises(VerificationError, match=r"scores at \(0, 0, 0, 0, 0\) is .* and pycocotools says"):
        official.verify(pairs, ours)
    with pytest.raises(VerificationError, match=r"AP50 is 0\.5 and pycocotools says"):
        official.verify(pairs, CocoScore(stats=ours.stats | {"AP50": 0.5}, arrays=ours.arrays))
