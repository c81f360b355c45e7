"""COCO results of `detection predict`, and their score."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.commands.predict import predict
from detection.data.sources.dataset import read
from detection.errors import DataError
from detection.evaluation.coco_ids import CocoIds
from detection.evaluation.evaluate import evaluate
from detection.inference import run_detector
from detection.models.build import load_detector
from detection.params import CocoDataset
from detection.params.datasets import CocoSplit
from detection.params.stages import Checks
from tests.command_line import detection, error_line

CLASSES = ("ring", "cross", "leaf")
CATEGORIES = [{"id": 90, "name": "leaf"}, {"id": 7, "name": "ring"}, {"id": 18, "name": "cross"}]
SIZES = ((80, 120), (120, 80), (64, 64), (50, 150), (120, 80), (80, 120))


@pytest.fixture
def dataset(project: Path, weights: Path) -> Path:
    """A COCO dataset of noise; its objects are some of the detector's own detections, moved a little."""
    folder = project / "data/coco"
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (height, width) in enumerate(SIZES):
        name = f"{'ab'[i % 2]}/{i // 2}.png"  # the same names in two folders
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
        images.append({"id": 1000 - 7 * i, "file_name": name, "height": height, "width": width})
    predict(folder / "images", weights, project / "own", 0.0, "cpu", recursive=True, draw=False)
    ids = {name["file_name"]: name["id"] for name in images}
    for entry in json.loads((project / "own/detections.json").read_text()):
        for one in entry["detections"][:12:2]:
            x1, y1, x2, y2 = one["box"]
            box = [x1, y1, (x2 - x1) * 0.9, (y2 - y1) * 0.9]
            category = next(c["id"] for c in CATEGORIES if c["name"] == one["class"])
            image_id = ids[str(Path(entry["file"]).relative_to(folder / "images"))]
            common = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
            annotations.append({**common, "bbox": box, "area": box[2] * box[3]})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_coco_results_score_as_the_experiment(
    project: Path, dataset: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(project / "data"))
    split = (CocoSplit(images="images", annotations="instances.json"),)
    dataset_ = CocoDataset(format="coco", path="coco", train=split, test=split, classes=CLASSES)
    raw = read("mine", dataset_, Checks(split_leak="keep", degenerate_box="keep"))
    loaded = load_detector(weights)
    index = raw.splits["test"]
    found = run_detector(loaded.detector, index, dataset, loaded.recipe, batch_size=4, device="cpu")
    expected = evaluate(index, found, raw.classes, rounds=2).stats
    truth = str(dataset / "instances.json")
    flags = ["--format", "coco", "--ground-truth", truth, "--recursive", "--weights", str(weights)]
    done = detection(project, "predict", "data/coco/images", *flags)
    assert done.returncode == 0, done.stderr
    assert not list((project / "predictions").rglob("*.png"))
    results = str(project / "predictions/detections.json")
    scored = detection(project, "score", "--format", "coco", "--ground-truth", truth, "--detections", results)
    stats = json.loads(scored.stdout)["stats"]
    assert stats["AP"] > 0.1
    for name, value in stats.items():
        number = np.nan if value is None else value
        assert number == pytest.approx(expected[name], abs=1e-6, nan_ok=True), name
    ids = json.loads((project / "predictions/detection_ids.json").read_text())
    assert {one["name"]: one["id"] for one in ids["categories"]} == {"ring": 7, "cross": 18, "leaf": 90}


def test_images_and_classes_that_the_file_lacks(
    project: Path, dataset: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, images = dataset / "instances.json", dataset / "images"
    content = json.loads(truth.read_text())
    content["categories"] = content["categories"][:2]
    content["annotations"] = []  # as in the list of a test set
    truth.write_text(json.dumps(content))
    out = project / "out"
    predict([images / "a", images / "b"], weights, out, coco=True, ground_truth=truth, device="cpu")
    assert "cross" in caplog.text
    found = json.loads((out / "detections.json").read_text())
    assert {one["category_id"] for one in found} <= {7, 90}
    assert {one["image_id"] for one in found} == {1000 - 7 * i for i in range(len(SIZES))}
    Image.new("RGB", (30, 30)).save(images / "a/other.png")
    with pytest.raises(DataError, match=r"does not list 1 of 4 images.*other\.png"):
        predict(images / "a", weights, out, coco=True, ground_truth=truth, device="cpu")
    content["categories"] = [{"id": 1, "name": "dog"}]
    truth.write_text(json.dumps(content))
    with pytest.raises(DataError, match="none of the detector's classes"):
        predict(images / "b", weights, out, coco=True, ground_truth=truth, device="cpu")
    line = error_line(detection(project, "predict", "data", "--ground-truth", str(truth), "--recursive"))
    assert "--format coco" in line


@pytest.mark.parametrize(
    ("files", "ids"),
    [(["000012.jpg", "b/7.jpg"], [12, 7]), (["12.jpg", "b/12.jpg"], [1, 2]), (["a.jpg", "12.jpg"], [1, 2])],
)
def test_ids_without_a_file(files: list[str], ids: list[int]) -> None:
    coco_ids = CocoIds.of_files([Path(file) for file in files], CLASSES)
    assert list(coco_ids.images.values()) == ids
    assert list(coco_ids.categories) == [1, 2, 3]


def test_the_entry_that_shares_most_of_the_path_counts(tmp_path: Path) -> None:
    truth = tmp_path / "instances.json"

    def found(names: list[str], *files: str) -> Any:
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        truth.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "ring"}]}))
        return list(CocoIds.of_ground_truth(truth, [Path(file) for file in files], ("ring",)).images.values())

    assert found(["val/1.jpg", "train/1.jpg"], "data/train/1.jpg", "data/val/1.jpg") == [1, 0]
    assert found(["old/computer/val/1.jpg"], "photos/1.jpg") == [0]
    with pytest.raises(DataError, match="does not list 1 of 1"):
        found(["val/1.jpg", "train/1.jpg"], "photos/1.jpg")
