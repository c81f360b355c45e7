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
    verdicts = MatchResult.of(overlaps, match(overlaps))
    return verdicts, CrossClassPairs.of(overlaps, verdicts)


def lists(overlaps: Overlaps, score: float, names: list[str], count: int = 50) -> dict[str, Any]:
    verdicts, strangers = judged(overlaps)
    errors = error_types.analyse(overlaps, verdicts, strangers)
    return hard_examples.rank_images(
        overlaps, verdicts, strangers, errors, score, ["cat", "dog", "emu", "fox", "gnu"], names, count
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_lost_adds_up_to_what_is_missing(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    verdicts, _ = judged(overlaps)
    precisions = []
    for label in range(CLASSES):
        mine = (overlaps.found.labels == label) & (verdicts.right | verdicts.wrong)
        right = verdicts.right[mine][np.argsort(-overlaps.found.scores[mine], kind="stable")]
        objects = int(np.sum(verdicts.counted & (overlaps.truth.labels == label)))
        if objects:
            precisions.append(np.sum(np.cumsum(right) / np.arange(1, len(right) + 1) * right) / objects)
    lost = hard_examples.ApLoss.of(overlaps, verdicts)
    assert np.all(lost.wrong >= 0)
    expected = 1 - np.mean(precisions) if precisions else 0
    assert lost.wrong.sum() + lost.missed.sum() == pytest.approx(expected, abs=1e-12)
    rows = lists(overlaps, 0.5, [f"picture {i}" for i in range(PICTURES)])["worst"]
    assert sum(row["lost_AP50"] for row in rows) == pytest.approx(expected, abs=1e-12)


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
    assert [(row["why"], row["picture"], row["class"]) for row in found["suspects"]] == [
        ("unlabelled", "p0", "dog"),
        ("other class", "p1", "dog"),
        ("unseen", "p2", "cat"),
    ]
    assert found["suspects"][1]["labelled"] == "cat"
    assert [(row["picture"], row["kind"]) for row in found["confident_wrong"]] == [
        ("p2", "background"),
        ("p0", "background"),
        ("p1", "classification"),
    ]
    # above 0.5 neither the cat of p1 nor the dog of p3 is found; the largest first
    assert [(row["picture"], row["box"]) for row in found["largest_missed"]] == [
        ("p2", [0, 0, 90, 90]),
        ("p3", [0, 0, 60, 60]),
        ("p1", [0, 0, 50, 50]),
    ]
    # cats: right, wrong (p2), right at place 3, one of three missed; dogs: right, wrong, wrong, right at 4
    worst = {row["picture"]: row for row in found["worst"]}
    assert worst["p2"]["by_missed"] == pytest.approx(1 / 3 / 2)
    assert worst["p2"]["by_wrong"] == pytest.approx(1 / 3 * 1 / 3 / 2)
    assert worst["p1"]["lost_AP50"] == pytest.approx(1 / 2 * 1 / 4 / 2)
    assert next(iter(worst)) == "p2"
    assert "p3" not in worst  # its dog is found, if last of all: that takes nothing from others
    assert [worst["p1"][name] for name in ("right", "wrong", "missed")] == [1, 1, 1]


def test_lists_end(make_index: MakeIndex) -> None:
    overlaps = Overlaps.of(*scene(3), CLASSES)
    found = lists(overlaps, 0.2, [str(i) for i in range(PICTURES)], count=2)
    assert len(found["confident_wrong"]) == len(found["largest_missed"]) == 2
    assert len(found["suspects"]) <= 6


@pytest.mark.parametrize("seed", range(10))
def test_recall_of_parts_is_the_recall_of_all(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    verdicts, _ = judged(overlaps)
    table = recall.by_kind(overlaps, verdicts, 0.5, np.full((PICTURES, 2), 140))
    for _, part in table.groupby("over"):
        assert part["objects"].sum() == verdicts.counted.sum()
        assert part["found"].sum() == (verdicts.counted & verdicts.found).sum()
        assert part["kept"].sum() == (verdicts.right & (overlaps.found.scores >= 0.5)).sum()


def test_recall_by_hand(make_index: MakeIndex) -> None:
    """One small object alone, two that overlap by 1/3, one of them at the picture's corner."""
    index = make_index(([[100, 50, 110, 60], [0, 0, 40, 40], [20, 0, 60, 40]], [0, 0, 0]))
    results = SplitDetections.pack([0, 0], [[100, 50, 110, 60], [0, 0, 40, 40]], [0.9, 0.3], [0, 0])
    overlaps = Overlaps.of_index(index, results, 1)
    verdicts, _ = judged(overlaps)
    table = recall.by_kind(overlaps, verdicts, 0.5, index.sizes)
    rows = {(r["over"], r["low"]): (r["objects"], r["found"], r["kept"]) for r in table.to_dict("records")}
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
    assert set(recall.by_kind(overlaps, verdicts, 0.5, None)["over"]) == {"size", "aspect ratio", "crowding"}


def test_localisation_by_hand(make_index: MakeIndex) -> None:
    """A box shifted by a tenth to the right, and one a fifth too wide; one below the threshold, far off."""
    index = make_index(([[0, 0, 100, 100], [0, 100, 100, 200], [200, 0, 300, 100]], [0, 0, 0]))
    found = [[10, 0, 110, 100], [-10, 100, 110, 200], [220, 0, 300, 100]]
    overlaps = Overlaps.of_index(index, SplitDetections.pack([0] * 3, found, [0.9, 0.8, 0.1], [0] * 3), 1)
    table = recall.localisation(overlaps, judged(overlaps)[0], 0.5).set_index("measure")
    assert table["detections"].groupby("measure").sum().tolist() == [2] * 5
    means = table["mean"].groupby("measure").first().to_dict()
    assert means == pytest.approx(
        {"IoU": (90 / 110 + 100 / 120) / 2, "x": 0.05, "y": 0, "width": 0.1, "height": 0}, abs=1e-6
    )
    nothing = recall.localisation(overlaps, judged(overlaps)[0], 2.0)
    assert nothing["detections"].sum() == 0
    assert nothing["mean"].isna().all()
