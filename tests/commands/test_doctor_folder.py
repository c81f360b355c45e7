"""`detection doctor FOLDER`: its two lines, pasted, make a dataset that `prepare` reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detection.data.loading.prepared import Prepared
from tests.command_line import ROOT, detection, error_line
from tests.doctor.tool_exports import CLASSES, EXPORTS


def paste(params: Path, text: str) -> str:
    """Put the doctor's two lines below `datasets:` and `budgets:`; return the dataset's name."""
    first, second = [line for line in text.splitlines() if line.startswith("  mine: {")]
    content = params.read_text(encoding="utf-8")
    content = content.replace("\ndatasets:\n", f"\ndatasets:\n{first}\n", 1)
    content = content.replace("\nbudgets:\n", f"\nbudgets:\n{second}\n", 1)
    params.write_text(content.replace("\ndataset: shapes\n", "\ndataset: mine\n"), encoding="utf-8")
    return first.split(":")[0].strip()


@pytest.mark.parametrize("export", ["roboflow_yolo", "cvat_voc"])
def test_pasted_lines_make_a_dataset(project: Path, export: str) -> None:
    EXPORTS[export](project / "data/raw/mine")
    (project / ".dvc").mkdir()
    done = detection(project, "doctor", "data/raw/mine")
    assert done.returncode == 0, done.stderr
    assert paste(project / "params.yaml", done.stdout) == "mine"
    report = detection(project, "doctor", "mine")
    assert report.returncode == 0, report.stderr
    assert "no problems" in report.stdout
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(project)}
    environment.pop("DATA_ROOT", None)
    command = [sys.executable, "-m", "stages.prepare"]
    prepare = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment, timeout=120)
    assert prepare.returncode == 0, prepare.stderr
    prepared = Prepared.load(project / "data/prepared")
    assert prepared.classes == CLASSES
    assert sum(len(prepared.index(split)) for split in ("train", "val", "test")) == 24


def test_neither_a_dataset_nor_a_folder(project: Path) -> None:
    assert "unknown dataset 'nowhere'" in error_line(detection(project, "doctor", "nowhere"))
