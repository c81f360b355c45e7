"""Every metric and array against pycocotools, without tolerance."""

from dataclasses import replace

import numpy as np
import pytest

from detection.errors import VerificationError
from detection.evaluation.protocol import coco_metrics, oracle, overlaps
from detection.evaluation.protocol.accumulate import Arrays
from detection.evaluation.protocol.coco_metrics import CocoScore
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import NUM_CLASSES, MakeIndex, crowded_split, random_split


def assert_same(truth: GroundTruth, predictions: Predictions) -> CocoScore:
    pairs = Overlaps.of(truth, predictions, NUM_CLASSES)
    matches = match(pairs)
    ours = coco_metrics.score_matches(pairs, matches)
    theirs = oracle.score(truth, predictions, NUM_CLASSES)
    assert np.array_equal(list(ours.stats.values()), list(theirs.stats.values()), equal_nan=True)
    without_arrays = coco_metrics.score_matches(pairs, matches, for_stats=True)
    assert np.array_equal(list(without_arrays.stats.values()), list(theirs.stats.values()), equal_nan=True)
    assert np.array_equal(without_arrays.precision, ours.precision, equal_nan=True)
    for name in Arrays._fields:
        assert np.array_equal(getattr(ours.arrays, name), getattr(theirs.arrays, name)), name
    for label, mine in enumerate(ours.per_class["AP"]):  # the usual AP of a class from COCO's array
        known = theirs.arrays.precision[:, :, label, 0, -1]
        assert np.array_equal(mine, known[known > -1].mean() if (known > -1).any() else np.nan, equal_nan=True)
    return ours


@pytest.mark.parametrize("start", range(0, 280, 20))
def test_280_random_splits(start: int) -> None:
    scored = [assert_same(*random_split(seed)) for seed in range(start, start + 20)]
    assert sum(0 < one.stats["AP"] < 1 for one in scored) > 10, "the splits are not trivial"


def test_more_than_100_detections_per_class_and_image() -> None:
    for seed in range(20):
        assert_same(*crowded_split(seed))


def test_block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [assert_same(*random_split(seed)) for seed in range(5)]
    monkeypatch.setattr(overlaps, "BLOCK_SIZE", 7)
    for seed, one in enumerate(whole):
        assert assert_same(*random_split(seed)).stats["AP"] == pytest.approx(one.stats["AP"], abs=0, nan_ok=True)


def test_images_are_ordered_by_id(make_index: MakeIndex) -> None:
    """Equal scores on two images: the order of the images decides the precision."""
    box = [[0, 0, 50, 50]]
    index = make_index((box, [0]), ([], []))
    results = SplitDetections.pack([0, 1], box * 2, [0.5, 0.5], [0, 0])
    assert coco_metrics.score(index, results, "a").stats["AP50"] == pytest.approx(1)
    swapped = replace(index, ids=np.array([b"9", b"3"]))
    assert coco_metrics.score(swapped, results, "a").stats["AP50"] == pytest.approx(0.5)


def test_verify_reports_a_difference() -> None:
    truth, predictions = random_split(1)
    pairs = Overlaps.of(truth, predictions, NUM_CLASSES)
    ours = coco_metrics.score_matches(pairs, match(pairs))
    oracle.verify(pairs, ours)
    ours.arrays.scores[0, 0, 0, 0, 0] += 1e-15
    with pytest.raises(VerificationError, match=r"scores at \(0, 0, 0, 0, 0\) .*pycocotools"):
        oracle.verify(pairs, ours)
    with pytest.raises(VerificationError, match=r"AP50 is 0\.5.*pycocotools"):
        oracle.verify(pairs, CocoScore(stats=ours.stats | {"AP50": 0.5}, arrays=ours.arrays))
