"""The stage: its metrics equal those that pycocotools computes from its files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.data.loading import prepared
from detection.data.loading.index import Index
from detection.data.sources.dataset import read
from detection.errors import CheckpointError, DataError
from detection.evaluation.protocol.coco_metrics import STATS
from detection.evaluation.protocol.results import SplitDetections
from detection.models.build import build_detector, save_detector
from detection.params import CocoDataset, Recipe, ShapesDataset, load
from detection.params.datasets import CocoSplit
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
    ids = json.loads((out / "tables/detection_ids.json").read_text())
    assert ids["categories"] == [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    assert ids["images"] == [{key: image[key] for key in ("id", "file_name")} for image in truth.dataset["images"]]
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


def official_instances(folder: Path) -> None:
    """Instances file with gaps in its ids, its categories and images out of order, and its images."""
    rng = np.random.default_rng(0)
    names = {90: "triangle", 3: "circle", 13: "square", 44: "star"}
    images: list[dict[str, Any]] = [
        {"id": number, "file_name": f"{number}.png", "height": 96, "width": 96} for number in (724, 139, 5001)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        Image.new("RGB", (96, 96)).save(folder / image["file_name"])
        for category in names:
            box = [*rng.integers(0, 40, 2).tolist(), *rng.integers(10, 50, 2).tolist()]
            number, area = len(annotations) + 1, box[2] * box[3]
            ids = {"id": number, "image_id": image["id"], "category_id": category}
            annotations.append({**ids, "bbox": box, "area": area, "iscrowd": int(number % 7 == 0)})
    categories = [{"id": number, "name": name} for number, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


def test_detections_score_the_same_against_the_official_file(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / "raw/gaps"
    folder.mkdir(parents=True)
    official_instances(folder)
    split = (CocoSplit(images=".", annotations="instances.json"),)
    dataset = CocoDataset(format="coco", path="gaps", train=split, test=split)
    prepared.save(read("gaps", dataset, replace(load().prepare.checks, split_leak="keep")), dataset)

    def jittered(_: object, index: Index, *__: object, **___: object) -> SplitDetections:
        moved = index.boxes + np.random.default_rng(1).integers(-4, 5, index.boxes.shape)
        return SplitDetections.pack(index.image_rows(), moved, np.linspace(1, 0.1, len(moved)), index.labels)

    monkeypatch.setattr("detection.inference.run_detector", jittered)
    evaluate.main()
    metrics = json.loads((workspace / "reports/evaluation/metrics.json").read_text())
    truth = COCO(folder / "instances.json")
    detections = workspace / "reports/evaluation/tables/detections.json"
    assert {one["category_id"] for one in json.loads(detections.read_text())} == {3, 13, 44, 90}
    official = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
    official.evaluate()
    official.accumulate()
    official.summarize()
    assert 0.2 < metrics["AP"] < 0.9
    expected = {name: None if value == -1 else value for name, value in zip(STATS, official.stats, strict=True)}
    assert {name: metrics[name] for name in STATS} == pytest.approx(expected, abs=1e-12)
    capsys.readouterr()
