"""Rankings worked out by hand, and losses that add up to the missing AP."""

from typing import Any

import numpy as np
import pytest

from detection.data.loading.index import Index
from detection.evaluation.analysis import error_types, hard_examples
from detection.evaluation.analysis.error_types import CrossClassPairs, MatchResult
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import NUM_CLASSES, NUM_IMAGES, MakeIndex, random_split


def match_result(overlaps: Overlaps) -> tuple[MatchResult, CrossClassPairs]:
    result = MatchResult.of(overlaps, match(overlaps))
    return result, CrossClassPairs.of(overlaps, result)


def lists(overlaps: Overlaps, score: float, names: list[str], count: int = 50) -> dict[str, Any]:
    result, cross_class = match_result(overlaps)
    errors = error_types.analyze(overlaps, result, cross_class)
    return hard_examples.rank_images(
        overlaps, result, cross_class, errors, score, ["cat", "dog", "emu", "fox", "gnu"], names, count
    )


@pytest.mark.parametrize("seed", range(20))
def test_losses_add_up_to_the_missing_ap(seed: int) -> None:
    overlaps = Overlaps.of(*random_split(seed), NUM_CLASSES)
    result, _ = match_result(overlaps)
    precisions = []
    for label in range(NUM_CLASSES):
        mine = (overlaps.predictions.labels == label) & (result.true_positive | result.false_positive)
        true_positive = result.true_positive[mine][np.argsort(-overlaps.predictions.scores[mine], kind="stable")]
        objects = int(np.sum(result.counted & (overlaps.ground_truth.labels == label)))
        if objects:
            precisions.append(
                np.sum(np.cumsum(true_positive) / np.arange(1, len(true_positive) + 1) * true_positive) / objects
            )
    lost = hard_examples.ApLoss.of(overlaps, result)
    assert np.all(lost.false_positive >= 0)
    expected = 1 - np.mean(precisions) if precisions else 0
    assert lost.false_positive.sum() + lost.missed.sum() == pytest.approx(expected, abs=1e-12)
    rows = lists(overlaps, 0.5, [f"image {i}" for i in range(NUM_IMAGES)])["worst"]
    assert sum(row["AP50_loss"] for row in rows) == pytest.approx(expected, abs=1e-12)


def label_errors(make_index: MakeIndex) -> tuple[Index, SplitDetections]:
    """Four images with each reason of a suspected label error once, and one correct object."""
    index = make_index(
        ([[0, 0, 50, 50]], [0]),  # a detected cat; beside it an unlabeled dog
        ([[0, 0, 50, 50], [100, 100, 140, 140]], [0, 1]),  # labeled cat, predicted dog
        ([[0, 0, 90, 90], [200, 0, 220, 20]], [0, 1], [0, 1]),  # undetected cat; cat predicted on the dog
        ([[0, 0, 60, 60]], [1]),  # detected with a low score only
    )
    detections = [
        (0, [0, 0, 50, 50], 0.9, 0),
        (0, [200, 100, 250, 150], 0.8, 1),
        (1, [0, 0, 50, 50], 0.7, 1),
        (1, [0, 0, 50, 48], 0.2, 0),
        (1, [100, 100, 140, 140], 0.95, 1),
        (2, [200, 0, 220, 20], 0.85, 0),
        (3, [0, 0, 60, 60], 0.1, 1),
    ]
    images, boxes, scores, labels = zip(*detections, strict=True)
    return index, SplitDetections.pack(images, boxes, scores, labels)


def test_rankings_by_hand(make_index: MakeIndex) -> None:
    overlaps = Overlaps.of_index(*label_errors(make_index), 2)
    ranked = lists(overlaps, 0.5, ["p0", "p1", "p2", "p3"])
    assert [(row["reason"], row["image"], row["class"]) for row in ranked["suspected_label_errors"]] == [
        ("unlabeled", "p0", "dog"),
        ("other class", "p1", "dog"),
        ("undetected", "p2", "cat"),
    ]
    assert ranked["suspected_label_errors"][1]["labeled_as"] == "cat"
    assert [(row["image"], row["error_type"]) for row in ranked["confident_false_positives"]] == [
        ("p2", "background"),
        ("p0", "background"),
        ("p1", "classification"),
    ]
    # above 0.5 neither the cat of p1 nor the dog of p3 is detected; the largest first
    assert [(row["image"], row["box"]) for row in ranked["largest_missed"]] == [
        ("p2", [0, 0, 90, 90]),
        ("p3", [0, 0, 60, 60]),
        ("p1", [0, 0, 50, 50]),
    ]
    # cats: TP, FP (p2), TP at rank 3, one of three missed; dogs: TP, FP, FP, TP at rank 4
    worst = {row["image"]: row for row in ranked["worst"]}
    assert worst["p2"]["loss_by_missed"] == pytest.approx(1 / 3 / 2)
    assert worst["p2"]["loss_by_false_positives"] == pytest.approx(1 / 3 * 1 / 3 / 2)
    assert worst["p1"]["AP50_loss"] == pytest.approx(1 / 2 * 1 / 4 / 2)
    assert next(iter(worst)) == "p2"
    assert "p3" not in worst  # its dog is detected with the lowest score, which costs others nothing
    assert [worst["p1"][name] for name in ("true_positives", "false_positives", "missed")] == [1, 1, 1]


def test_maximum_entries(make_index: MakeIndex) -> None:
    overlaps = Overlaps.of(*random_split(3), NUM_CLASSES)
    ranked = lists(overlaps, 0.2, [str(i) for i in range(NUM_IMAGES)], count=2)
    assert len(ranked["confident_false_positives"]) == len(ranked["largest_missed"]) == 2
    assert len(ranked["suspected_label_errors"]) <= 6
