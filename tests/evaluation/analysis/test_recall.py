"""Recall by attribute and box accuracy, worked out by hand."""

import numpy as np
import pytest

from detection.evaluation.analysis import recall
from detection.evaluation.analysis.error_types import CrossClassPairs, MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import NUM_CLASSES, NUM_IMAGES, MakeIndex, random_split


def match_result(overlaps: Overlaps) -> tuple[MatchResult, CrossClassPairs]:
    result = MatchResult.of(overlaps, match(overlaps))
    return result, CrossClassPairs.of(overlaps, result)


@pytest.mark.parametrize("seed", range(10))
def test_bins_add_up(seed: int) -> None:
    overlaps = Overlaps.of(*random_split(seed), NUM_CLASSES)
    result, _ = match_result(overlaps)
    table = recall.recall_by_attribute(overlaps, result, 0.5, np.full((NUM_IMAGES, 2), 140))
    for _, part in table.groupby("attribute"):
        assert part["objects"].sum() == result.counted.sum()
        assert part["detected"].sum() == (result.counted & result.detected).sum()
        assert (
            part["detected_above_threshold"].sum()
            == (result.true_positive & (overlaps.predictions.scores >= 0.5)).sum()
        )


def test_recall_by_hand(make_index: MakeIndex) -> None:
    """One small object alone, two that overlap by IoU 1/3, one of them at the image's corner."""
    index = make_index(([[100, 50, 110, 60], [0, 0, 40, 40], [20, 0, 60, 40]], [0, 0, 0]))
    results = SplitDetections.pack([0, 0], [[100, 50, 110, 60], [0, 0, 40, 40]], [0.9, 0.3], [0, 0])
    overlaps = Overlaps.of_index(index, results, 1)
    result, _ = match_result(overlaps)
    table = recall.recall_by_attribute(overlaps, result, 0.5, index.sizes)
    rows = {
        (r["attribute"], r["low"]): (r["objects"], r["detected"], r["detected_above_threshold"])
        for r in table.to_dict("records")
    }
    assert rows == {
        ("size", 0): (1, 1, 1),
        ("size", 32): (2, 1, 0),
        ("aspect ratio", 2 / 3): (3, 2, 1),
        ("crowding", 0): (1, 1, 1),
        ("crowding", 0.3): (2, 1, 0),
        ("truncation", 0): (1, 1, 1),
        ("truncation", 1): (1, 0, 0),
        ("truncation", 2): (1, 1, 0),
    }
    assert set(recall.recall_by_attribute(overlaps, result, 0.5, None)["attribute"]) == {
        "size",
        "aspect ratio",
        "crowding",
    }


def test_localization_by_hand(make_index: MakeIndex) -> None:
    """One box a tenth too far right, one a fifth too wide, and one below the threshold."""
    index = make_index(([[0, 0, 100, 100], [0, 100, 100, 200], [200, 0, 300, 100]], [0, 0, 0]))
    detections = [[10, 0, 110, 100], [-10, 100, 110, 200], [220, 0, 300, 100]]
    overlaps = Overlaps.of_index(index, SplitDetections.pack([0] * 3, detections, [0.9, 0.8, 0.1], [0] * 3), 1)
    table = recall.localization(overlaps, match_result(overlaps)[0], 0.5).set_index("measure")
    assert table["detections"].groupby("measure").sum().tolist() == [2] * 5
    means = table["mean"].groupby("measure").first().to_dict()
    assert means == pytest.approx(
        {"IoU": (90 / 110 + 100 / 120) / 2, "x": 0.05, "y": 0, "width": 0.1, "height": 0}, abs=1e-6
    )
    nothing = recall.localization(overlaps, match_result(overlaps)[0], 2.0)
    assert nothing["detections"].sum() == 0
    assert nothing["mean"].isna().all()
