"""What to do next follows from the numbers."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from detection.report.charts.error_chart import SUMS

from detection.report.page.advice import ON_ERRORS, advise


def table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


@pytest.mark.parametrize("worst", ON_ERRORS)
def test_the_dearest_kind_of_error_is_named(tmp_path: Path, worst: str) -> None:
    kinds = [*ON_ERRORS, *SUMS]
    gains = [0.2 if kind == worst else 0.9 if kind in SUMS else 0.1 for kind in kinds]
    table(tmp_path / "evaluation/errors.csv", error_type=kinds, count=3, dAP50=gains)
    assert advise(tmp_path) == {"errors": f"Most is lost (0.200 of AP50) by {ON_ERRORS[worst]}"}


def test_errors_of_a_detector_that_has_not_learnt_are_no_advice(tmp_path: Path) -> None:
    kinds = [*ON_ERRORS, *SUMS]
    table(tmp_path / "evaluation/errors.csv", error_type=kinds, count=3, dAP50=0.1)
    metrics = tmp_path / "evaluation/metrics.json"
    metrics.write_text('{"AP50": 0.012}')
    advice = advise(tmp_path)
    assert list(advice) == ["training"]
    assert advice["training"].startswith("AP50 is 0.012: the detector has hardly learnt yet")
    for learnt in ("0.05", "null"):
        metrics.write_text(f'{{"AP50": {learnt}}}')
        assert list(advise(tmp_path)) == ["errors"]


@pytest.mark.parametrize(
    ("curve", "best", "said"),
    [
        ([0.1, 0.2, 0.3], 3, "still rose at the end, by 0.100: train for more epochs"),
        ([0.1, 0.3, 0.2], 2, "fell by 0.100 after epoch 2"),
        ([0.1, 0.300, 0.299], 2, "has levelled off"),
    ],
)
def test_training(tmp_path: Path, curve: list[float], best: int, said: str) -> None:
    table(tmp_path / "train/metrics.csv", epoch=[1, 2, 3], AP=curve)
    (tmp_path / "train/metrics.json").write_text(json.dumps({"best_epoch": best, "AP": max(curve)}))
    assert said in advise(tmp_path)["training"]


def test_recall_names_the_weakest_kind_with_enough_objects(tmp_path: Path) -> None:
    table(
        tmp_path / "evaluation/recall.csv",
        attribute=["size", "size", "crowding", "crowding", "crowding"],
        low=[0, 32, 0, 0.3, 0.5],
        high=[32, None, 1e-9, 0.5, None],
        objects=[50, 50, 60, 37, 3],
        detected_above_threshold=[40, 40, 68, 12, 0],
        recall_above_threshold=[0.8, 0.8, 0.9, 0.3, 0.0],
    )
    text = advise(tmp_path)["recall"]
    assert text.startswith(
        "Weakest: objects that overlap another by IoU 0.3–0.5 (37), 30% of them found above"
    )
    assert "nms_threshold" in text


def test_a_weak_class_with_few_objects_needs_pictures(tmp_path: Path) -> None:
    path = tmp_path / "evaluation/per_class.csv"
    table(path, **{"class": ["a", "b", "none"], "objects": [500, 400, 0], "AP": [0.8, 0.3, None]})
    table(tmp_path / "dataset/classes.csv", **{"class": ["a", "b", "none"], "train": [960, 40, 0]})
    said = "The weakest class is b: AP 0.300, the others 0.800."
    assert (
        advise(tmp_path)["classes"] == f"{said} It has only 4% of the training objects: add pictures of it."
    )
    table(path, **{"class": ["a", "b"], "objects": [500, 4], "AP": [0.8, 0.3]})
    assert "It rests on 4 objects" in advise(tmp_path)["classes"]


def test_no_files_no_advice(tmp_path: Path) -> None:
    assert advise(tmp_path) == {}
