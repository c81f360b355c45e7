"""The stage itself, as DVC runs it: a process in a workspace that the other stages have filled."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.reporting.page_reader import read, words

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
    (workspace / "reports/plots/of_before.png").touch()
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "reports/index.html" in done.stdout
    names = ["ap_per_class", "calibration", "confusion", "errors", "learning_rate", "localisation", "losses"]
    names += ["operating", "pr_curves", "pretrain", "recall", "samples", "validation"]
    assert sorted(path.stem for path in (workspace / "reports/plots").iterdir()) == names
    for path in (workspace / "reports/plots").iterdir():
        with Image.open(path) as picture:
            assert picture.width >= 600
    reader = read(workspace / "reports/index.html")
    assert all(link.startswith(("data:", "#")) for link in reader.links)
    assert not {"iframe", "object", "embed", "base", "form"} & reader.tags
    assert [given for tag, given in reader.attributes if tag == "script"] == [{}]
    (policy,) = [given["content"] for _, given in reader.attributes if "http-equiv" in given]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links if len(link) > 1 and link[0] == "#"} <= set(reader.ids)
    html = (workspace / "reports/index.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\(\s*[\"']?(?!#)", html)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy.replace("&#39;", "'")
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", script[1])
    assert 3 + 12 < sum(link.startswith("data:image/jpeg") for link in reader.links) <= 3 + 5 * 12
    text = words(reader)
    made_of = json.loads((workspace / "reports/train/recipe.json").read_text())
    assert text.count(made_of["model"]) >= 2
    assert "of detections right" in text
    assert "What to do next" in text
    assert not re.search(
        r"\bNo (pictures|scores|losses|dataset|recipe|error|confusion|objects|precision)", text
    )
    assert (workspace / "reports/model_card.md").read_text().startswith(f"# {made_of['model']} on")


def test_without_val_pretraining_and_pictures(workspace: Path) -> None:
    reports = workspace / "reports"
    (reports / "train/metrics.csv").write_text("epoch,step,time\n")
    (reports / "train/metrics.json").write_text('{"steps": 10, "epochs": 1, "seconds": 5}')
    (reports / "pretrain/curves.csv").write_text("epoch,lr,loss,accuracy,val_accuracy\n")
    (reports / "pretrain/metrics.json").write_text('{"method": "none"}')
    meta = json.loads((workspace / "data/prepared/meta.json").read_text())
    meta.pop("shapes")  # as another dataset: it cannot be drawn again
    (workspace / "data/prepared/meta.json").write_text(json.dumps(meta))
    shutil.rmtree(workspace / "raw")
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "the page shows no test pictures" in done.stdout
    text = words(read(reports / "index.html"))
    for said in (
        "No pictures to show",
        "has no val split",
        "Started from random weights",
        "of detections right",
    ):
        assert said in text
    assert not (reports / "plots/samples.png").exists()


def test_before_evaluation(workspace: Path) -> None:
    shutil.rmtree(workspace / "reports/evaluation")
    done = plots()
    assert done.returncode == 0, done.stderr
    assert "No scores yet" in words(read(workspace / "reports/index.html"))


def test_a_detector_that_is_sure_of_nothing(workspace: Path) -> None:
    (workspace / "reports/evaluation/detections.json").write_text("[]")
    done = plots()
    assert done.returncode == 0, done.stderr
    text = words(read(workspace / "reports/index.html"))
    assert "0 right, 0 wrong" in text
