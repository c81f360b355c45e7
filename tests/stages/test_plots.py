"""The stage as DVC runs it: a process in a workspace with the outputs of the other stages."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.loading import prepared
from detection.data.sources.dataset import read
from tests.report.conftest import SMALL, plausible, write_evaluation
from tests.report.page_reader import parse, text_of

ROOT = Path(__file__).parents[2]
HEAVY = """
import sys, runpy
try:
    runpy.run_module("stages.plots", run_name="__main__")
finally:
    heavy = {"torch", "torchvision", "mlflow"} & set(sys.modules)
    assert not heavy, heavy
"""


def plots() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAVY],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_figures_and_page(workspace: Path) -> None:
    (workspace / "reports/plots").mkdir()
    (workspace / "reports/plots/outdated.png").touch()
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "reports/index.html" in done.stdout
    names = ["ap_per_class", "calibration", "confusion", "errors", "learning_rate", "localization", "losses"]
    names += ["operating", "pr_curves", "pretrain", "recall", "samples", "validation"]
    assert sorted(path.stem for path in (workspace / "reports/plots").iterdir()) == names
    for path in (workspace / "reports/plots").iterdir():
        with Image.open(path) as image:
            assert image.width >= 600
    page = parse(workspace / "reports/index.html")
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"iframe", "object", "embed", "base", "form"} & page.tags
    assert [values for tag, values in page.attributes if tag == "script"] == [{}]
    (policy,) = [values["content"] for _, values in page.attributes if "http-equiv" in values]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if len(link) > 1 and link[0] == "#"} <= set(page.ids)
    html = (workspace / "reports/index.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\(\s*[\"']?(?!#)", html)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy.replace("&#39;", "'")
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", script[1])
    assert 3 + 12 < sum(link.startswith("data:image/jpeg") for link in page.links) <= 3 + 5 * 12
    text = text_of(page)
    made_of = json.loads((workspace / "reports/train/recipe.json").read_text())
    assert text.count(made_of["model"]) >= 2
    assert "Findings" in text
    assert not re.search(r"\bNo (images|losses|dataset|recipe|error|confusion|objects|precision)", text)
    assert (workspace / "reports/model_card.md").read_text().startswith(f"# {made_of['model']} on")


def test_without_val_pretraining_and_images(workspace: Path) -> None:
    reports = workspace / "reports"
    (reports / "train/metrics.csv").write_text("epoch,step,time\n")
    (reports / "train/metrics.json").write_text('{"steps": 10, "epochs": 1, "seconds": 5}')
    (reports / "pretrain/curves.csv").write_text("epoch,lr,loss,accuracy,val_accuracy\n")
    (reports / "pretrain/metrics.json").write_text('{"method": "none", "start": "random weights"}')
    meta = json.loads((workspace / "data/prepared/meta.json").read_text())
    meta.pop("shapes")  # a dataset that cannot be generated again
    (workspace / "data/prepared/meta.json").write_text(json.dumps(meta))
    shutil.rmtree(workspace / "raw")
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "no test images" in done.stdout
    text = text_of(parse(reports / "index.html"))
    for expected in ("No images", "has no val split", "from random weights", "precision"):
        assert expected in text
    assert not (reports / "plots/samples.png").exists()


def test_before_evaluation(workspace: Path) -> None:
    shutil.rmtree(workspace / "reports/evaluation")
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "Not evaluated" in text_of(parse(workspace / "reports/index.html"))


def test_without_detections(workspace: Path) -> None:
    (workspace / "reports/evaluation/tables/detections.json").write_text("[]")
    done = plots()
    assert done.returncode == 0, done.stderr
    text = text_of(parse(workspace / "reports/index.html"))
    assert "0 TP, 0 FP" in text


def test_a_test_split_without_objects(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = read("shapes", SMALL)
    full = raw.splits["test"]
    raw.splits["test"] = full.keep_boxes(np.zeros(len(full.boxes), np.bool_))
    false_positives = plausible(full, len(raw.classes))
    monkeypatch.setattr("tests.report.conftest.plausible", lambda index, classes: false_positives)
    shutil.rmtree(workspace / "reports/evaluation")
    (workspace / "reports/evaluation").mkdir()
    prepared.save(raw, SMALL)
    write_evaluation(workspace / "reports/evaluation", raw)
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "No object of the test split can be scored" in text_of(parse(workspace / "reports/index.html"))
