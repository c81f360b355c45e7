"""The model card has the numbers of the reports."""

import json
import shutil
from pathlib import Path

import pandas as pd

from detection.report.model_card import write_model_card


def test_numbers_data_and_limits(workspace: Path) -> None:
    text = write_model_card(Path("reports/model_card.md"), Path("reports")).read_text(encoding="utf-8")
    evaluation = Path("reports/evaluation")
    metrics = json.loads((evaluation / "metrics.json").read_text())
    intervals = json.loads((evaluation / "tables/intervals.json").read_text())["stats"]
    for name in ("AP", "AP50", "AP75"):
        interval = f"{intervals[name]['low']:.3f}–{intervals[name]['high']:.3f}"
        assert f"| {name} | {metrics[name]:.3f} | {interval} |" in text
    for row in pd.read_csv(evaluation / "tables/per_class.csv").to_dict("records"):
        assert f"| {row['class']} | {row['objects']} | {row['AP']:.3f} |" in text
    card = json.loads(Path("reports/dataset/card.json").read_text())
    assert f"`{card['digest']}`" in text
    assert card["license"] in text
    errors = json.loads((evaluation / "tables/analysis.json").read_text())["errors"]
    assert f"classification {errors['classification']['dAP50']:.3f}" in text
    recipe = json.loads(Path("reports/train/recipe.json").read_text())["recipe"]
    assert f"architecture: {recipe['architecture']}" in text
    assert "detection predict" in text
    assert "\n\n\n" not in text


def test_missing_reports_are_named(tmp_path: Path) -> None:
    text = write_model_card(tmp_path / "model_card.md", tmp_path).read_text(encoding="utf-8")
    assert "Not evaluated." in text
    assert "not evaluated" in text
    assert "No dataset card." in text


def test_names_do_not_break_tables(workspace: Path) -> None:
    shutil.rmtree("reports/evaluation")
    path = Path("reports/dataset/card.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"license": "a|b <i> `c`"}))
    text = write_model_card(Path("reports/model_card.md"), Path("reports")).read_text(encoding="utf-8")
    assert "| license | a\\|b \\<i> \\`c\\` |" in text
