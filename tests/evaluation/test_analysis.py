"""Errors of which each is known, sums that hold, and thresholds worked out by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scenes import CLASSES, scene

from detection.data.index import Index
from detection.evaluation.analysis import error_types, tables, thresholds
from detection.evaluation.analysis.error_types import ERROR_TYPES, CrossClassPairs, MatchResult
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections

MakeIndex = Callable[..., Index]


def built(make_index: MakeIndex) -> tuple[Overlaps, MatchResult, CrossClassPairs]:
    """Two classes, six objects in a row; one detection is right, one wrong of each kind, one neutral."""
    at = [[100 * i, 0, 100 * i + 50, 50] for i in range(6)]
    index = make_index((at, [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]))
    found = [
        (at[0], 0.95, 0),  # right
        (at[0], 0.85, 0),  # duplicate of it
        ([100, 0, 150, 20], 0.75, 0),  # localization: IoU 0.4 with the second
        (at[2], 0.65, 0),  # classification: the third is of class 1
        ([300, 0, 350, 20], 0.55, 0),  # both: IoU 0.4 with the fourth, of class 1
        ([0, 100, 50, 150], 0.45, 1),  # background
        (at[5], 0.99, 0),  # neither right nor wrong: a difficult object
    ]
    boxes, scores, labels = zip(*found, strict=True)
    overlaps = Overlaps.of_index(index, SplitDetections.of_image(0, boxes, scores, labels), 2)
    result = MatchResult.of(overlaps, match(overlaps))
    return overlaps, result, CrossClassPairs.of(overlaps, result)


def test_each_kind_is_known(make_index: MakeIndex) -> None:
    overlaps, result, cross_class = built(make_index)
    errors = error_types.analyze(overlaps, result, cross_class)
    given = np.argsort(overlaps.detection_order)
    names = [ERROR_TYPES[k] if k >= 0 else "-" for k in errors.types[given]]
    assert names == ["-", "duplicate", "localization", "classification", "both", "background", "-"]
    assert errors.counts == {
        "classification": 1,
        "localization": 1,
        "both": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 2,  # the fourth and fifth; the second and third would be found by a mended detection
        "false_positives": 5,
        "false_negatives": 4,
    }


def test_gains_by_hand(make_index: MakeIndex) -> None:
    """Class 0 has 2 objects and class 1 has 3; precision is read at 101 recalls."""
    errors = error_types.analyze(*built(make_index))
    half, third = 51 / 101, 34 / 101  # recalls up to 1/2, and up to 1/3
    assert errors.ap50 == pytest.approx(half / 2)  # class 0: one of two at precision 1; class 1: nothing
    gains = {name: value + half / 2 for name, value in errors.gains.items()}
    assert gains["classification"] == pytest.approx((half + third) / 2)  # the mended one is class 1's best
    # right, wrong (duplicate), right: precision 1 up to 1/2, then 2/3
    assert gains["localization"] == pytest.approx((half + (1 - half) * 2 / 3) / 2)
    for kind in ("both", "duplicate", "background", "false_positives"):
        assert errors.gains[kind] == pytest.approx(0)
    assert gains["missed"] == pytest.approx(half / 2)  # class 1 still does not find its third
    # Nothing is left to find in class 1, but its detection on the background stays wrong.
    assert gains["false_negatives"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("seed", range(30))
def test_sums_hold(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    matches = match(overlaps)
    result = MatchResult.of(overlaps, matches)
    cross_class = CrossClassPairs.of(overlaps, result)
    errors = error_types.analyze(overlaps, result, cross_class)
    stats = coco_metrics.score_matches(overlaps, matches).stats
    assert errors.ap50 == pytest.approx(stats["AP50"], abs=1e-12, nan_ok=True)
    counts = errors.counts
    assert sum(counts[kind] for kind in ERROR_TYPES) == counts["false_positives"]
    assert result.true_positive.sum() + counts["false_negatives"] == result.counted.sum()
    assert counts["missed"] <= counts["false_negatives"]
    if not np.isnan(errors.ap50):
        assert min(errors.gains["missed"], errors.gains["false_positives"]) >= -1e-12
        everything = error_types.WhatIf(overlaps, result)
        unfound = result.counted & ~result.detected
        assert everything.ap50(removed=result.false_positive, removed_objects=unfound) == pytest.approx(1)

    for threshold in (0.0, 0.5, thresholds.sweeps(overlaps, result)[0].best.score):
        matrix = thresholds.confusion_matrix(overlaps, result, cross_class, threshold)
        kept = overlaps.predictions.scores >= threshold
        objects = np.bincount(overlaps.ground_truth.labels[result.counted], minlength=CLASSES)
        said = np.bincount(
            overlaps.predictions.labels[kept & (result.true_positive | result.false_positive)],
            minlength=CLASSES,
        )
        assert matrix[:-1].sum(axis=1).tolist() == objects.tolist()
        assert matrix[:, :-1].sum(axis=0).tolist() == said.tolist()
        assert np.trace(matrix) == (kept & result.true_positive).sum()


@pytest.mark.parametrize("seed", range(0, 20, 2))  # of even seeds, no two scores are equal
def test_mended_detections_move_to_the_class_of_their_object(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    result = MatchResult.of(overlaps, match(overlaps))
    rng = np.random.default_rng(seed)
    wrong, unfound = np.flatnonzero(result.false_positive), np.flatnonzero(result.counted & ~result.detected)
    count = min(len(wrong), len(unfound))
    mended = rng.permutation(wrong)[:count]
    target = np.full(len(result.false_positive), -1)
    target[mended] = rng.permutation(unfound)[:count]
    gone = rng.random(len(result.false_positive)) < 0.3
    without = result.false_positive & (gone | np.isin(np.arange(len(gone)), mended))

    rows = [
        (r, overlaps.predictions.labels[r], result.true_positive[r])
        for r in np.flatnonzero(result.true_positive)
    ]
    rows += [(r, overlaps.predictions.labels[r], False) for r in wrong if not without[r]]
    rows += [(r, overlaps.ground_truth.labels[target[r]], True) for r in mended]
    rows.sort(key=lambda row: -overlaps.predictions.scores[row[0]])
    values = []
    for label in np.unique(overlaps.ground_truth.labels[result.counted]):
        true = np.cumsum([right for _, said, right in rows if said == label])
        recall = true / np.sum(result.counted & (overlaps.ground_truth.labels == label))
        precision = true / np.arange(1, len(true) + 1)
        best = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
        values.append(np.mean(best))
    wanted = np.mean(values) if values else np.nan
    mended_ap = error_types.WhatIf(overlaps, result).ap50(removed=without, fixed=mended, target=target)
    assert mended_ap == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_confusion_by_hand(make_index: MakeIndex) -> None:
    matrix = thresholds.confusion_matrix(*built(make_index), 0.5)
    # what there is: class 0, class 1, nothing; what was said: class 0, class 1, nothing
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 2], [3, 0, 0]]
    assert thresholds.confusion_matrix(*built(make_index), 0.9).tolist() == [[1, 0, 1], [0, 0, 3], [0, 0, 0]]


def test_best_f1_by_hand(make_index: MakeIndex) -> None:
    overlaps, result, _ = built(make_index)
    best = thresholds.sweeps(overlaps, result)[0].best
    assert best.score == pytest.approx(0.95)  # 1 of 1 is right, 1 of 5 found; every other detection is wrong
    assert (best.precision, best.recall, best.f1) == pytest.approx((1, 1 / 5, 2 / 6))
    sweep = thresholds.sweeps(overlaps, result)[1][1]
    assert sweep.recall[0] == sweep.precision[0] == 0
    assert np.isnan(sweep.precision[50])  # no detection of class 1 is left at 0.5


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_the_best_of_all(seed: int) -> None:
    overlaps = Overlaps.of(*scene(seed), CLASSES)
    result = MatchResult.of(overlaps, match(overlaps))
    best = thresholds.sweeps(overlaps, result)[0].best
    some, objects = result.true_positive | result.false_positive, result.counted.sum()
    tried = {
        score: 2
        * (result.true_positive & (overlaps.predictions.scores >= score)).sum()
        / ((some & (overlaps.predictions.scores >= score)).sum() + objects)
        for score in overlaps.predictions.scores[some].tolist()
    }
    assert best.f1 == pytest.approx(max(tried.values()))
    assert best.score == max(score for score, f1 in tried.items() if f1 == max(tried.values()))


def test_calibration_by_hand(make_index: MakeIndex) -> None:
    overlaps, result, _ = built(make_index)
    calibration = thresholds.calibrate(overlaps, result)
    assert calibration.detections.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert calibration.precision[4:].tolist() == [0, 0, 0, 0, 0, 1]
    assert calibration.error == pytest.approx((0.45 + 0.55 + 0.65 + 0.75 + 0.85 + 0.05) / 6, abs=1e-6)


def test_nothing_at_all(make_index: MakeIndex, tmp_path: Path) -> None:
    overlaps = Overlaps.of_index(make_index(([], [])), SplitDetections.concat([]), 2)
    tables.write_tables(tmp_path, tables.build_tables(overlaps, match(overlaps), "ab", ["one"]))
    written = json.loads((tmp_path / "analysis.json").read_text())
    assert written["AP50"] is None
    assert written["errors"]["missed"]["count"] == 0


def test_files(make_index: MakeIndex, tmp_path: Path) -> None:
    overlaps, _, _ = built(make_index)
    tables.write_tables(
        tmp_path / "new", tables.build_tables(overlaps, match(overlaps), ["cat", "dog"], ["one"])
    )
    table = pd.read_csv(tmp_path / "new/errors_per_class.csv", index_col="class")
    assert table.loc["cat"].tolist() == [2, 1, 1, 1, 1, 1, 0, 0]
    assert table.loc["dog"].tolist() == [3, 0, 0, 0, 0, 0, 1, 2]
    confusion = pd.read_csv(tmp_path / "new/confusion.csv")
    assert confusion["count"].sum() == 1 + 4  # at the best F1: one right, four objects missed
    assert set(confusion["predicted"]) == {"cat", "(missed)"}
    assert not list((tmp_path / "new").glob(".*"))
