"""The page asks the network for nothing, says what is missing, and trusts no name."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from detection.report.page.metric_docs import SCORES
from page_reader import read, words

from detection.report.page import html, score_tables
from detection.report.page.advice import advise


def write(reports: Path) -> str:
    return words(read(html.write(reports / "index.html", reports, {}, None, {})))


def test_everything_missing_is_said(tmp_path: Path) -> None:
    text = write(tmp_path)
    for missing in (
        "unknown model",
        "No scores yet",
        "No pictures to show",
        "No losses were recorded",
        "no val split",
        "No pretraining curve",
        "No dataset card",
        "nothing has been trained",
        "no MLflow row was written",
    ):
        assert missing in text


def test_the_fourteen_numbers_and_their_meaning(finished: Path, tmp_path: Path) -> None:
    out = html.write(tmp_path / "index.html", finished / "reports", {}, None, {})
    text = words(read(out))
    metrics = json.loads((finished / "reports/evaluation/metrics.json").read_text())
    spread = json.loads((finished / "reports/evaluation/intervals.json").read_text())
    assert list(metrics) == list(SCORES)
    for name, value in metrics.items():
        assert SCORES[name] in text
        assert value is None or f"{value:.3f}" in text
    for name, one in spread["stats"].items():
        assert f"{name} {one['value']:.3f} {one['low']:.3f}–{one['high']:.3f}" in text
        assert one["value"] == pytest.approx(metrics[name])
    assert metrics["AP_large"] is None
    assert "AP_large —" in text


def test_tables_by_class_are_those_of_the_files(finished: Path, tmp_path: Path) -> None:
    evaluation = finished / "reports/evaluation"
    text = words(read(html.write(tmp_path / "index.html", finished / "reports", {}, None, {})))
    spread = json.loads((evaluation / "intervals.json").read_text())["per_class"]["AP"]
    for row in pd.read_csv(evaluation / "per_class.csv").to_dict("records"):
        one = spread[row["class"]]
        interval = f"{one['low']:.3f}–{one['high']:.3f}"
        scores = f"{row['AP']:.3f} {interval} {row['AP50']:.3f} {row['AP75']:.3f}"
        assert f"{row['class']} {row['objects']:,} {scores}" in text
    for row in pd.read_csv(evaluation / "errors_per_class.csv").to_dict("records"):
        assert " ".join(map(str, row.values())) in text
    best = json.loads((evaluation / "analysis.json").read_text())["threshold"]
    assert f"at score ≥ {best['score']:.3f}" in text
    assert f"{best['precision']:.0%} of detections right, {best['recall']:.0%} of objects found" in text


def test_speed_and_size(finished: Path, tmp_path: Path) -> None:
    rows = {name: (value, text) for name, value, text in score_tables.speed(finished / "reports")}
    assert rows["parameters"] == ("12,345,678", "47.1 MiB in memory")
    assert rows["work"] == ("3.2 GFLOPs", "for a picture of 160 by 128 pixels")
    assert rows["latency"][0] == "21.5 ms, p95 24.2 ms"
    assert "median of 30 rounds" in rows["latency"][1]
    assert rows["throughput"][0] == "61.5 pictures/s, slowest 48.0"
    assert "16 at a time: the median of 9 rounds" in rows["throughput"][1]
    assert rows["measured on"] == ("a processor, 2 threads", "float32, torch 2.11")
    text = words(read(html.write(tmp_path / "index.html", finished / "reports", {}, None, {})))
    assert all(value in text for value, _ in rows.values())
    (tmp_path / "evaluation").mkdir()
    sized = {"device": "cpu", "precision": "float32", "torch": "2.11", "parameters": 10, "weights_mib": 0.1}
    (tmp_path / "evaluation/speed.json").write_text(json.dumps(sized))  # of a split without pictures
    assert [row[0] for row in score_tables.speed(tmp_path)] == ["parameters", "measured on"]


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"method": "none"}, "Started from random weights"),
        ({"method": "published", "weights": "IMAGENET1K_V1"}, "Published weights: IMAGENET1K_V1"),
    ],
)
def test_a_backbone_that_was_not_trained_here(tmp_path: Path, summary: dict[str, str], said: str) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/metrics.json").write_text(json.dumps(summary))
    assert said in write(tmp_path)


def test_training_without_val(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.json").write_text('{"steps": 1234, "epochs": 2.468, "seconds": 3725}')
    text = write(tmp_path)
    assert "the last checkpoint was kept" in text
    assert "2.5 epochs, 1,234 steps, 1 h 2 min" in text


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "train").mkdir()
    evil = "<script>alert(1)</script>"
    table = pd.DataFrame({"class": [evil], "objects": [3]})
    table[["AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area"]] = 0.5
    table.to_csv(tmp_path / "evaluation/per_class.csv", index=False)
    made_of = {"model": evil, "dataset": "a&b", "seed": 0, "recipe": {"x": evil}, "overrides": []}
    (tmp_path / "train/recipe.json").write_text(json.dumps(made_of))
    reader = read(html.write(tmp_path / "index.html", tmp_path, {}, None, advise(tmp_path)))
    assert [tag for tag, _ in reader.attributes].count("script") == 1  # the page's own
    assert words(reader).count(evil) >= 3


def test_commands_in_advice_are_code_and_names_are_not_markup(tmp_path: Path) -> None:
    advice = {"errors": "see `detection doctor` about <b>"}
    page = html.write(tmp_path / "index.html", tmp_path, {}, None, advice).read_text(encoding="utf-8")
    assert page.count("see <code>detection doctor</code> about &lt;b&gt;") == 2


def test_overridden_values_say_where_they_come_from(finished: Path) -> None:
    rows = {row["key"]: row for row in score_tables.recipe(finished / "reports")}
    assert rows["image_size"]["source"] == "budgets.shapes"
    assert rows["optimizer.name"]["source"] == ""
    assert rows["optimizer.lr"]["value"] == re.sub(r"0+$", "", rows["optimizer.lr"]["value"])
    assert rows["anchors.round"]["value"] in ("true", "false")


def test_classes_named_like_missing_values(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/per_class.csv").write_text(
        "class,objects,AP,AP50,AP75,voc_ap50_11pt,voc_ap50_area\nnan,2,0.1,0.2,0.3,0.4,0.5\nnone,0,,,,,\n"
    )
    rows = score_tables.classes(tmp_path)
    assert [row["name"] for row in rows] == ["nan", "none"]
    assert rows[0]["values"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert rows[1]["values"] == [None] * 5
    assert "—" in write(tmp_path)
