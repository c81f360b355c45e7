"""Findings follow from the numbers."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from detection.evaluation.analysis.error_types import ERROR_TYPES
from detection.report.page.advice import MIN_OBJECTS, UNTRAINED_AP50, advise
from detection.report.page.score_tables import TOTALS

TYPES = [*ERROR_TYPES, "missed"]


def table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


@pytest.mark.parametrize("worst", TYPES)
def test_the_error_type_of_the_largest_loss_is_named(tmp_path: Path, worst: str) -> None:
    types = [*TYPES, *TOTALS]
    gains = [0.2 if name == worst else 0.9 if name in TOTALS else 0.1 for name in types]
    table(tmp_path / "evaluation/tables/errors.csv", error_type=types, count=3, dAP50=gains)
    assert list(advise(tmp_path)) == ["errors"]
    assert f"{worst}, 0.200" in advise(tmp_path)["errors"]


def test_no_error_analysis_of_an_untrained_detector(tmp_path: Path) -> None:
    table(tmp_path / "evaluation/tables/errors.csv", error_type=TYPES, count=3, dAP50=0.1)
    metrics = tmp_path / "evaluation/metrics.json"
    metrics.write_text('{"AP50": 0.012}')
    assert list(advise(tmp_path)) == ["training"]
    assert "0.012" in advise(tmp_path)["training"]
    for ap50, section in ((str(UNTRAINED_AP50), "errors"), ("null", "classes")):
        metrics.write_text(f'{{"AP50": {ap50}}}')
        assert list(advise(tmp_path)) == [section]


@pytest.mark.parametrize(
    ("curve", "best", "finding"),
    [
        ([0.1, 0.2, 0.3], 3, "rose by 0.100"),
        ([0.1, 0.3, 0.2], 2, "fell by 0.100 after epoch 2"),
        ([0.1, 0.300, 0.299], 2, "converged"),
    ],
)
def test_training(tmp_path: Path, curve: list[float], best: int, finding: str) -> None:
    table(tmp_path / "train/metrics.csv", epoch=[1, 2, 3], AP=curve)
    (tmp_path / "train/metrics.json").write_text(json.dumps({"best_epoch": best, "AP": max(curve)}))
    assert finding in advise(tmp_path)["training"]


def test_recall_names_the_weakest_group_with_enough_objects(tmp_path: Path) -> None:
    table(
        tmp_path / "evaluation/tables/recall.csv",
        attribute=["size", "size", "crowding", "crowding", "crowding"],
        low=[0, 32, 0, 0.3, 0.5],
        high=[32, None, 1e-9, 0.5, None],
        objects=[50, 50, 60, 37, MIN_OBJECTS - 1],
        detected_above_threshold=[40, 40, 68, 12, 0],
        recall_above_threshold=[0.8, 0.8, 0.9, 0.3, 0.0],
    )
    text = advise(tmp_path)["recall"]
    assert "IoU 0.3–0.5 to another object, 0.30 of 37; all 0.80" in text
    assert "nms_threshold" in text


def test_weak_class(tmp_path: Path) -> None:
    path = tmp_path / "evaluation/tables/per_class.csv"
    rest = {"AP50": 0.5, "AP75": 0.5, "voc_ap50_11pt": 0.5, "voc_ap50_area": 0.5}
    table(path, **{"class": ["a", "b", "none"], "objects": [500, 400, 0], "AP": [0.8, 0.3, None], **rest})
    table(tmp_path / "dataset/classes.csv", **{"class": ["a", "b", "none"], "train": [960, 40, 0]})
    text = advise(tmp_path)["classes"]
    assert "b, AP 0.300" in text
    assert "0.800" in text
    assert "4% of the training objects" in text
    table(path, **{"class": ["a", "b"], "objects": [500, 4], "AP": [0.8, 0.3], **rest})
    assert "4 test objects" in advise(tmp_path)["classes"]


def test_a_class_is_not_called_weak_by_chance(tmp_path: Path) -> None:
    tables, rest = (
        tmp_path / "evaluation/tables",
        {"AP50": 0.5, "AP75": 0.5, "voc_ap50_11pt": 0.5, "voc_ap50_area": 0.5},
    )
    table(tables / "per_class.csv", **{"class": ["a", "b"], "objects": [500, 30], "AP": [0.5, 0.4], **rest})
    intervals = {"per_class": {"AP": {"b": {"value": 0.4, "low": 0.2, "high": 0.55}}}}
    (tables / "intervals.json").write_text(json.dumps(intervals))
    assert "within the 95 % interval of its AP, 0.200 to 0.550" in advise(tmp_path)["classes"]
    intervals["per_class"]["AP"]["b"]["high"] = 0.45
    (tables / "intervals.json").write_text(json.dumps(intervals))
    assert "interval" not in advise(tmp_path)["classes"]


def test_no_files_no_findings(tmp_path: Path) -> None:
    assert advise(tmp_path) == {}
