import json
import math
import re
from pathlib import Path

import pandas as pd

from detection.report.page import score_tables


def test_speed_and_size(finished: Path) -> None:
    rows = {name: (value, text) for name, value, text in score_tables.speed(finished / "reports")}
    assert rows["parameters"] == ("12,345,678", "47.1 MiB of weights")
    assert rows["compute"] == ("3.2 GFLOPs", "per image of 160 × 128 pixels")
    assert rows["latency"][0] == "21.5 ms, p95 24.2 ms"
    assert "30 rounds" in rows["latency"][1]
    assert rows["throughput"][0] == "61.5 images/s, slowest 48.0"
    assert "batch size 16" in rows["throughput"][1]
    assert rows["device"] == ("a processor, 2 threads", "float32, torch 2.11")


def test_speed_without_test_images(tmp_path: Path) -> None:
    (tmp_path / "evaluation/tables").mkdir(parents=True)
    sized = {"device": "cpu", "precision": "float32", "torch": "2.11", "parameters": 10, "weights_mib": 0.1}
    (tmp_path / "evaluation/tables/speed.json").write_text(json.dumps(sized))
    assert [row[0] for row in score_tables.speed(tmp_path)] == ["parameters", "device"]


def test_overridden_values_have_a_source(finished: Path) -> None:
    rows = {row["key"]: row for row in score_tables.recipe(finished / "reports")}
    assert rows["image_size"]["source"] == "budgets.shapes"
    assert rows["architecture"]["source"] == ""
    assert rows["optimizer.lr"]["value"] == re.sub(r"0+$", "", rows["optimizer.lr"]["value"])
    assert any(row["value"] in ("true", "false") for row in rows.values())


def test_classes_named_like_missing_values(tmp_path: Path) -> None:
    (tmp_path / "evaluation/tables").mkdir(parents=True)
    (tmp_path / "evaluation/tables/per_class.csv").write_text(
        "class,objects,AP,AP50,AP75,voc_ap50_11pt,voc_ap50_area\nnan,2,0.1,0.2,0.3,0.4,0.5\nnone,0,,,,,\n"
    )
    rows = score_tables.classes(tmp_path)
    assert [row["name"] for row in rows] == ["nan", "none"]
    assert rows[0]["values"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(map(math.isnan, rows[1]["values"]))
    assert score_tables.score(rows[1]["values"][0]) == score_tables.MISSING


def test_confused_classes_are_without_background_and_missed(tmp_path: Path) -> None:
    (tmp_path / "evaluation/tables").mkdir(parents=True)
    columns = {"actual": ["cat", "cat", "dog", "(background)", "dog"], "count": [7, 3, 2, 9, 4]}
    table = pd.DataFrame(columns | {"predicted": ["cat", "dog", "(missed)", "cat", "cat"]})
    table.to_csv(tmp_path / "evaluation/tables/confusion.csv", index=False)
    assert score_tables.confused_classes(tmp_path) == [("dog", "cat", 4), ("cat", "dog", 3)]
    assert score_tables.confused_classes(tmp_path, 1) == [("dog", "cat", 4)]
