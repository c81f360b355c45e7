from collections.abc import Callable

import numpy as np
import pytest

from detection.data.index import Index
from detection.evaluation.analysis.tables import per_class_table, pr_curve_table
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.results import SplitDetections

MakeIndex = Callable[..., Index]
FindAll = Callable[[Index], SplitDetections]


def test_per_class_counts_and_scores(make_index: MakeIndex, perfect: FindAll) -> None:
    index = make_index(([[0, 0, 50, 50], [60, 60, 90, 90], [100, 100, 150, 150]], [0, 1, 0], [0, 0, 1]))
    results = perfect(index).select(index.labels == 0)
    classes = ["cat", "dog", "emu"]
    score = coco_metrics.score(index, results, classes)
    frame = per_class_table(classes, score, voc_metrics.score(index, results, classes), index)
    assert frame.columns.tolist() == [
        "class", "objects", "AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area",
    ]  # fmt: skip
    assert frame["class"].tolist() == classes
    assert frame["objects"].tolist() == [1, 1, 0]
    assert frame["AP"].tolist()[:2] == pytest.approx([1, 0])
    assert frame.iloc[2, 2:].isna().all()


def test_curves_average_the_classes_that_have_objects(make_index: MakeIndex, perfect: FindAll) -> None:
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


def test_curves_without_any_object(make_index: MakeIndex) -> None:
    score = coco_metrics.score(make_index(([], [])), SplitDetections.concat([]), ["cat"])
    assert pr_curve_table(["cat"], score)["precision"].isna().all()
