"""Every number of ours against pycocotools', with no tolerance at all."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scenes import CLASSES, crowded, scene

from detection.data.index import Index
from detection.errors import VerificationError
from detection.evaluation.protocol import coco_metrics, oracle, ordering
from detection.evaluation.protocol.accumulate import Arrays
from detection.evaluation.protocol.coco_metrics import CocoScore
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions
from detection.evaluation.protocol.results import SplitDetections


def assert_same(truth: GroundTruth, found: Predictions) -> CocoScore:
    pairs = Overlaps.of(truth, found, CLASSES)
    ours = coco_metrics.score_matches(pairs, match(pairs))
    theirs = oracle.score(truth, found, CLASSES)
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
    monkeypatch.setattr(ordering, "BLOCK_SIZE", 7)
    for seed, one in enumerate(whole):
        assert assert_same(*scene(seed)).stats["AP"] == pytest.approx(one.stats["AP"], abs=0, nan_ok=True)


def test_order_of_pictures_is_that_of_their_ids(make_index: Callable[..., Index]) -> None:
    """Equal scores on two pictures: whose comes first decides the precision."""
    box = [[0, 0, 50, 50]]
    index = make_index((box, [0]), ([], []))
    results = SplitDetections.pack([0, 1], box * 2, [0.5, 0.5], [0, 0])
    assert coco_metrics.score(index, results, "a").stats["AP50"] == pytest.approx(1)
    swapped = replace(index, ids=np.array([b"9", b"3"]))
    assert coco_metrics.score(swapped, results, "a").stats["AP50"] == pytest.approx(0.5)


def test_a_difference_is_reported() -> None:
    truth, found = scene(1)
    pairs = Overlaps.of(truth, found, CLASSES)
    ours = coco_metrics.score_matches(pairs, match(pairs))
    oracle.verify(pairs, ours)
    ours.arrays.scores[0, 0, 0, 0, 0] += 1e-15
    with pytest.raises(VerificationError, match=r"scores at \(0, 0, 0, 0, 0\) .*pycocotools"):
        oracle.verify(pairs, ours)
    with pytest.raises(VerificationError, match=r"AP50 is 0\.5.*pycocotools"):
        oracle.verify(pairs, CocoScore(stats=ours.stats | {"AP50": 0.5}, arrays=ours.arrays))
