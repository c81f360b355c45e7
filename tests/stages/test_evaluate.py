"""The stage: its metrics equal those that pycocotools computes from its files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.data.loading import prepared
from detection.data.sources.dataset import read
from detection.errors import CheckpointError, DataError
from detection.evaluation.protocol.coco_metrics import STATS
from detection.models.build import build_detector, save_detector
from detection.params import Recipe, ShapesDataset, load
from stages import evaluate

ROOT = Path(__file__).parents[2]
CLASSES = ("circle", "square", "star", "triangle")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared shapes, and an untrained detector without a score threshold."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    small = ShapesDataset(format="shapes", path="shapes", train=2, val=1, test=10, image_size=64)
    prepared.save(read("shapes", small), small)
    torch.manual_seed(0)
    recipe: Recipe = replace(load().recipe, image_size=64, max_size=64, score_threshold=0.0)
    Path("models").mkdir()
    state = build_detector(recipe, len(CLASSES), None).state_dict()
    save_detector(Path("models/detector.pt"), state, recipe, CLASSES, "untrained")
    return tmp_path


def test_files_agree_with_pycocotools(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main()
    out = workspace / "reports/evaluation"
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == [*STATS, "voc_ap50_11pt", "voc_ap50_area"]
    truth = COCO("data/prepared/test_coco.json")
    predicted = truth.loadRes(str(out / "tables/detections.json"))
    assert len(predicted.anns) > 100
    official = COCOeval(truth, predicted, "bbox")
    official.evaluate()
    official.accumulate()
    official.summarize()
    expected = {name: None if value == -1 else value for name, value in zip(STATS, official.stats, strict=True)}
    assert {name: metrics[name] for name in STATS} == pytest.approx(expected, abs=1e-12)
    assert None in expected.values(), "no object in 64 px is large; JSON has no NaN"
    table = pd.read_csv(out / "tables/per_class.csv")
    assert tuple(table["class"]) == CLASSES
    assert table["AP"].mean() == pytest.approx(metrics["AP"])
    assert table["voc_ap50_area"].mean() == pytest.approx(metrics["voc_ap50_area"])
    assert len(pd.read_csv(out / "tables/pr_curves.csv")) == 5 * 101
    assert json.loads((out / "run.json").read_text()) == {"run_id": None}


def test_a_detector_of_other_classes_is_refused(workspace: Path) -> None:
    meta = Path("data/prepared/meta.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"classes": ["cat", "dog", "emu", "fox"]}))
    with pytest.raises(CheckpointError, match="classes"):
        evaluate.main()
    assert not (workspace / "reports/evaluation").exists()


def test_changed_images_are_refused(workspace: Path) -> None:
    for path in (workspace / "raw").rglob("JPEGImages/*"):
        path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="prepare"):
        evaluate.main()
