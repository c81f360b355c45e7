"""Tables of an evaluation and their files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from detection.evaluation.analysis.tables import build_tables, per_class_table, pr_curve_table, write_tables
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import FindAll, MakeIndex, one_error_of_each_type


def test_per_class_table(make_index: MakeIndex, perfect: FindAll) -> None:
    index = make_index(([[0, 0, 50, 50], [60, 60, 90, 90], [100, 100, 150, 150]], [0, 1, 0], [0, 0, 1]))
    results = perfect(index).select(index.labels == 0)
    classes = ["cat", "dog", "emu"]
    score = coco_metrics.score(index, results, classes)
    counted = index.labels[~(index.difficult | index.crowd)]
    frame = per_class_table(classes, score, voc_metrics.score(index, results, classes), counted)
    assert frame.columns.tolist() == [
        "class", "objects", "AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area",
    ]  # fmt: skip
    assert frame["class"].tolist() == classes
    assert frame["objects"].tolist() == [1, 1, 0]
    assert frame["AP"].tolist()[:2] == pytest.approx([1, 0])
    assert frame.iloc[2, 2:].isna().all()


def test_pr_curve_is_averaged_over_classes_with_objects(make_index: MakeIndex, perfect: FindAll) -> None:
    index = make_index(([[0, 0, 50, 50], [60, 60, 90, 90]], [0, 1]))
    results = perfect(index).select(index.labels == 0)
    score = coco_metrics.score(index, results, ["cat", "dog", "emu"])
    frame = pr_curve_table(["cat", "dog", "emu"], score)
    assert len(frame) == 4 * 101
    assert frame["recall"].tolist()[:3] == [0.0, 0.01, 0.02]
    by = frame.groupby("class")["precision"].mean()
    assert (by["cat"], by["dog"], by["all"]) == pytest.approx((1, 0, 0.5))
    assert np.isnan(by["emu"])
    assert frame.groupby("class")["precision"].mean()["all"] == pytest.approx(score.stats["AP50"])


def test_pr_curve_without_objects(make_index: MakeIndex) -> None:
    score = coco_metrics.score(make_index(([], [])), SplitDetections.concat([]), ["cat"])
    assert pr_curve_table(["cat"], score)["precision"].isna().all()


def test_no_objects_and_no_detections(make_index: MakeIndex, tmp_path: Path) -> None:
    overlaps = Overlaps.of_index(make_index(([], [])), SplitDetections.concat([]), 2)
    write_tables(tmp_path, build_tables(overlaps, match(overlaps), "ab", ["one"]))
    written = json.loads((tmp_path / "analysis.json").read_text())
    assert written["AP50"] is None
    assert written["errors"]["missed"]["count"] == 0


def test_files(make_index: MakeIndex, tmp_path: Path) -> None:
    overlaps, _, _ = one_error_of_each_type(make_index)
    write_tables(tmp_path / "new", build_tables(overlaps, match(overlaps), ["cat", "dog"], ["one"]))
    table = pd.read_csv(tmp_path / "new/errors_per_class.csv", index_col="class")
    assert list(table.loc["cat"]) == [2, 1, 1, 1, 1, 1, 0, 0]
    assert list(table.loc["dog"]) == [3, 0, 0, 0, 0, 0, 1, 2]
    confusion = pd.read_csv(tmp_path / "new/confusion.csv")
    assert confusion["count"].sum() == 1 + 4  # at the best F1: one true positive, four missed objects
    assert set(confusion["predicted"]) == {"cat", "(missed)"}
    assert not list((tmp_path / "new").glob(".*"))
