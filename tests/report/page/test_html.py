"""The page makes no request, names what is missing, and escapes every name."""

import json
from pathlib import Path

import pandas as pd
import pytest

from detection.report.page.advice import advise
from detection.report.page.html import write_page
from detection.report.page.score_tables import NAMES, SCORES
from tests.report.page_reader import parse, text_of


def write(reports: Path, out: Path | None = None) -> str:
    return text_of(parse(write_page(out or reports / "index.html", reports, {}, None, {})))


def test_everything_missing_is_named(tmp_path: Path) -> None:
    text = write(tmp_path)
    for missing in (
        "unknown model",
        "dvc repro evaluate",
        "No images",
        "No losses",
        "no val split",
        "No pretraining curve",
        "No dataset card",
        "not trained",
        "no MLflow run",
    ):
        assert missing in text


def test_the_fourteen_metrics_and_their_definitions(finished: Path, tmp_path: Path) -> None:
    text = write(finished / "reports", tmp_path / "index.html")
    metrics = json.loads((finished / "reports/evaluation/metrics.json").read_text())
    intervals = json.loads((finished / "reports/evaluation/tables/intervals.json").read_text())
    assert list(metrics) == list(SCORES)
    for name, value in metrics.items():
        assert SCORES[name] in text
        assert value is None or f"{value:.3f}" in text
    for name, one in intervals["stats"].items():
        shown = NAMES.get(name, name)
        assert f"{shown} {one['value']:.3f} {one['low']:.3f}–{one['high']:.3f}" in text
        assert one["value"] == pytest.approx(metrics[name])
    assert metrics["AP_large"] is None
    assert "AP_large —" in text


def test_tables_per_class_are_those_of_the_files(finished: Path, tmp_path: Path) -> None:
    evaluation = finished / "reports/evaluation/tables"
    text = write(finished / "reports", tmp_path / "index.html")
    intervals = json.loads((evaluation / "intervals.json").read_text())["per_class"]["AP"]
    for row in pd.read_csv(evaluation / "per_class.csv").to_dict("records"):
        one = intervals[row["class"]]
        interval = f"{one['low']:.3f}–{one['high']:.3f}"
        scores = f"{row['AP']:.3f} {interval} {row['AP50']:.3f} {row['AP75']:.3f}"
        assert f"{row['class']} {row['objects']:,} {scores}" in text
    for row in pd.read_csv(evaluation / "errors_per_class.csv").to_dict("records"):
        assert " ".join(map(str, row.values())) in text
    best = json.loads((evaluation / "analysis.json").read_text())["threshold"]
    assert f"at score ≥ {best['score']:.3f}" in text
    assert f"precision {best['precision']:.2f}, recall {best['recall']:.2f}" in text


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"method": "none", "start": "random weights"}, "from random weights."),
        ({"method": "published", "start": "torchvision's", "weights": "V1"}, "from torchvision's (V1)."),
        ({"method": "file", "start": "the file a.pth; as published: x", "weights": "a.pth"}, "from the file a.pth; as"),
    ],
)
def test_backbone_that_was_not_trained_here(tmp_path: Path, summary: dict[str, str], expected: str) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/metrics.json").write_text(json.dumps(summary))
    assert expected in write(tmp_path)


def test_training_without_val(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.json").write_text('{"steps": 1234, "epochs": 2.468, "seconds": 3725}')
    text = write(tmp_path)
    assert "Last checkpoint" in text
    assert "2.5 epochs, 1,234 steps, 1:02:05" in text


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    (tmp_path / "evaluation/tables").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    evil = "<script>alert(1)</script>"
    table = pd.DataFrame({"class": [evil], "objects": [3]})
    table[["AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area"]] = 0.5
    table.to_csv(tmp_path / "evaluation/tables/per_class.csv", index=False)
    made_of = {"model": evil, "dataset": "a&b", "seed": 0, "recipe": {"x": evil}, "overrides": []}
    (tmp_path / "train/recipe.json").write_text(json.dumps(made_of))
    page = parse(write_page(tmp_path / "index.html", tmp_path, {}, None, advise(tmp_path)))
    assert [tag for tag, _ in page.attributes].count("script") == 1  # the page's own
    assert text_of(page).count(evil) >= 3


def test_commands_in_findings_are_code_and_names_are_not_markup(tmp_path: Path) -> None:
    advice = {"errors": "see `detection doctor` about <b>"}
    page = write_page(tmp_path / "index.html", tmp_path, {}, None, advice).read_text(encoding="utf-8")
    assert page.count("see <code>detection doctor</code> about &lt;b&gt;") == 2
