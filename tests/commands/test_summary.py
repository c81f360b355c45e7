"""`detection summary` and `detection check` as a user runs them."""

import json
from pathlib import Path

from tests.command_line import detection, error_line


def test_check_lists_overridden_values(project: Path) -> None:
    done = detection(project, "check")
    assert done.returncode == 0
    assert "params.yaml is valid" in done.stdout
    assert "batch_size = " in done.stdout
    file = project / "params.yaml"
    file.write_text(file.read_text().replace("\nseed:", "\nseeed:"))
    assert "did you mean 'seed'?" in error_line(detection(project, "check"))


def test_summary_shows_scores_and_next_commands(project: Path) -> None:
    assert "run `dvc repro` first" in error_line(detection(project, "summary"))
    for path, content in {
        "evaluation/metrics.json": {"AP": 0.5004, "AP50": 0.71249, "AP_large": None},
        "train/recipe.json": {"model": "toy", "dataset": "shapes"},
    }.items():
        file = project / "reports" / path
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    shown = detection(project, "summary").stdout
    assert "toy on shapes" in shown
    assert "AP50 0.712" in shown
    assert "AP_large     -" in shown
    assert str(project / "reports/index.html") in shown
    assert "dvc exp run -S model=" in shown
