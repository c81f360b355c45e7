"""Which pictures to look at: every rank known beforehand, and what is lost adds up."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scenes import CLASSES, PICTURES, scene

from detection.data.index import Index
from detection.evaluation.analysis import error_types, hard_examples, recall
from detection.evaluation.analysis.error_types import CrossClassPairs, MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections

MakeIndex = Callable[..., Index]


def judged(overlaps: Overlaps) -> tuple[MatchResult, CrossClassPairs]:
    result = MatchResult.of(overlaps, match(overlaps))
    return result, CrossClassPairs.of(overlaps, result)


def lists(overlaps: Overlaps, score: float, names: list[str], count: int = 50) -> dict[str, Any]:
    result, cross_class = judged(overlaps)
    errors = error_types.analyze(overlaps, result, cross_class)
    return hard_examples.rank_images(
        overlaps, result, cross_class, errors, score, ["cat", "dog", "emu", "fox", "gnu"], names, count
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_lost_adds_up_to_what_is_missing(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    result, _ = judged(overlaps)
    precisions = []
    for label in range(CLASSES):
        mine = (overlaps.predictions.labels == label) & (result.true_positive | result.false_positive)
        right = result.true_positive[mine][np.argsort(-overlaps.predictions.scores[mine], kind="stable")]
        objects = int(np.sum(result.counted & (overlaps.ground_truth.labels == label)))
        if objects:
            precisions.append(np.sum(np.cumsum(right) / np.arange(1, len(right) + 1) * right) / objects)
    lost = hard_examples.ApLoss.of(overlaps, result)
    assert np.all(lost.false_positive >= 0)
    expected = 1 - np.mean(precisions) if precisions else 0
    assert lost.false_positive.sum() + lost.missed.sum() == pytest.approx(expected, abs=1e-12)
    rows = lists(overlaps, 0.5, [f"picture {i}" for i in range(PICTURES)])["worst"]
    assert sum(row["AP50_loss"] for row in rows) == pytest.approx(expected, abs=1e-12)


def suspicious(make_index: MakeIndex) -> tuple[Index, SplitDetections]:
    """Four pictures in which every kind of suspect occurs once, and once something that is none."""
    index = make_index(
        ([[0, 0, 50, 50]], [0]),  # a cat that is found; beside it a dog that nobody labelled
        ([[0, 0, 50, 50], [100, 100, 140, 140]], [0, 1]),  # labelled a cat, said to be a dog
        ([[0, 0, 90, 90], [200, 0, 220, 20]], [0, 1], [0, 1]),  # nothing finds it; on the difficult dog a cat
        ([[0, 0, 60, 60]], [1]),  # found with a low score only
    )
    found = [
        (0, [0, 0, 50, 50], 0.9, 0),
        (0, [200, 100, 250, 150], 0.8, 1),
        (1, [0, 0, 50, 50], 0.7, 1),
        (1, [0, 0, 50, 48], 0.2, 0),
        (1, [100, 100, 140, 140], 0.95, 1),
        (2, [200, 0, 220, 20], 0.85, 0),
        (3, [0, 0, 60, 60], 0.1, 1),
    ]
    images, boxes, scores, labels = zip(*found, strict=True)
    return index, SplitDetections.pack(images, boxes, scores, labels)


def test_every_rank_by_hand(make_index: MakeIndex) -> None:
    overlaps = Overlaps.of_index(*suspicious(make_index), 2)
    found = lists(overlaps, 0.5, ["p0", "p1", "p2", "p3"])
    assert [(row["reason"], row["image"], row["class"]) for row in found["suspected_label_errors"]] == [
        ("unlabeled", "p0", "dog"),
        ("other class", "p1", "dog"),
        ("undetected", "p2", "cat"),
    ]
    assert found["suspected_label_errors"][1]["labeled_as"] == "cat"
    assert [(row["image"], row["error_type"]) for row in found["confident_false_positives"]] == [
        ("p2", "background"),
        ("p0", "background"),
        ("p1", "classification"),
    ]
    # above 0.5 neither the cat of p1 nor the dog of p3 is found; the largest first
    assert [(row["image"], row["box"]) for row in found["largest_missed"]] == [
        ("p2", [0, 0, 90, 90]),
        ("p3", [0, 0, 60, 60]),
        ("p1", [0, 0, 50, 50]),
    ]
    # cats: right, wrong (p2), right at place 3, one of three missed; dogs: right, wrong, wrong, right at 4
    worst = {row["image"]: row for row in found["worst"]}
    assert worst["p2"]["loss_by_missed"] == pytest.approx(1 / 3 / 2)
    assert worst["p2"]["loss_by_false_positives"] == pytest.approx(1 / 3 * 1 / 3 / 2)
    assert worst["p1"]["AP50_loss"] == pytest.approx(1 / 2 * 1 / 4 / 2)
    assert next(iter(worst)) == "p2"
    assert "p3" not in worst  # its dog is found, if last of all: that takes nothing from others
    assert [worst["p1"][name] for name in ("true_positives", "false_positives", "missed")] == [1, 1, 1]


def test_lists_end(make_index: MakeIndex) -> None:
    overlaps = Overlaps.of(*scene(3), CLASSES)
    found = lists(overlaps, 0.2, [str(i) for i in range(PICTURES)], count=2)
    assert len(found["confident_false_positives"]) == len(found["largest_missed"]) == 2
    assert len(found["suspected_label_errors"]) <= 6


@pytest.mark.parametrize("seed", range(10))
def test_recall_of_parts_is_the_recall_of_all(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    result, _ = judged(overlaps)
    table = recall.recall_by_attribute(overlaps, result, 0.5, np.full((PICTURES, 2), 140))
    for _, part in table.groupby("attribute"):
        assert part["objects"].sum() == result.counted.sum()
        assert part["detected"].sum() == (result.counted & result.detected).sum()
        assert (
            part["detected_above_threshold"].sum()
            == (result.true_positive & (overlaps.predictions.scores >= 0.5)).sum()
        )


def test_recall_by_hand(make_index: MakeIndex) -> None:
    """One small object alone, two that overlap by 1/3, one of them at the picture's corner."""
    index = make_index(([[100, 50, 110, 60], [0, 0, 40, 40], [20, 0, 60, 40]], [0, 0, 0]))
    results = SplitDetections.pack([0, 0], [[100, 50, 110, 60], [0, 0, 40, 40]], [0.9, 0.3], [0, 0])
    overlaps = Overlaps.of_index(index, results, 1)
    result, _ = judged(overlaps)
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
    """A box shifted by a tenth to the right, and one a fifth too wide; one below the threshold, far off."""
    index = make_index(([[0, 0, 100, 100], [0, 100, 100, 200], [200, 0, 300, 100]], [0, 0, 0]))
    found = [[10, 0, 110, 100], [-10, 100, 110, 200], [220, 0, 300, 100]]
    overlaps = Overlaps.of_index(index, SplitDetections.pack([0] * 3, found, [0.9, 0.8, 0.1], [0] * 3), 1)
    table = recall.localization(overlaps, judged(overlaps)[0], 0.5).set_index("measure")
    assert table["detections"].groupby("measure").sum().tolist() == [2] * 5
    means = table["mean"].groupby("measure").first().to_dict()
    assert means == pytest.approx(
        {"IoU": (90 / 110 + 100 / 120) / 2, "x": 0.05, "y": 0, "width": 0.1, "height": 0}, abs=1e-6
    )
    nothing = recall.localization(overlaps, judged(overlaps)[0], 2.0)
    assert nothing["detections"].sum() == 0
    assert nothing["mean"].isna().all()
