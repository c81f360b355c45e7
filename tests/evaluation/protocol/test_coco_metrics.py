"""COCO's metrics against pycocotools reading files, and against published values."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.data.loading.index import Index, Record, pack
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.results import SplitDetections
from tests.evaluation.scenes import FindAll, MakeIndex


@pytest.fixture(scope="module")
def oracle(shared_data: Path) -> Path:
    return shared_data / "oracle" / "coco_val2014_100"


def read_index(path: Path) -> tuple[Index, list[str], dict[int, int]]:
    """Plain reader of COCO's JSON; category ids have gaps."""
    raw = json.loads(path.read_text())
    label_of = {one["id"]: label for label, one in enumerate(sorted(raw["categories"], key=lambda c: c["id"]))}
    boxes_of: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in raw["images"]}
    for one in raw["annotations"]:
        boxes_of[one["image_id"]].append(one)
    records = []
    for image in sorted(raw["images"], key=lambda i: i["id"]):
        mine = boxes_of[image["id"]]
        boxes = np.array([one["bbox"] for one in mine], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        records.append(
            Record(
                file=image["file_name"],
                id=str(image["id"]),
                height=image["height"],
                width=image["width"],
                boxes=boxes.astype(np.float32),
                labels=np.array([label_of[one["category_id"]] for one in mine], dtype=np.int64),
                difficult=np.zeros(len(mine), dtype=bool),
                crowd=np.array([one["iscrowd"] for one in mine], dtype=bool),
                areas=np.array([one["area"] for one in mine], dtype=np.float32),
            )
        )
    names = [one["name"] for one in sorted(raw["categories"], key=lambda c: c["id"])]
    return pack(records), names, label_of


def test_published_metrics(oracle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, classes, label_of = read_index(oracle / "instances_val2014_100.json")
    rows = json.loads((oracle / "instances_val2014_fakebbox100_results.json").read_text())
    rows = [{**row, "category_id": label_of[row["category_id"]] + 1} for row in rows]
    score = coco_metrics.score(index, SplitDetections.from_coco(index, rows), classes)
    expected = json.loads((oracle / "expected.json").read_text())["stats"]
    assert score.stats == pytest.approx(expected, abs=1e-9)
    assert np.nanmean(score.precision) == pytest.approx(score.stats["AP"], abs=1e-12)
    assert capsys.readouterr().out == ""


def random_case(make_index: MakeIndex, seed: int = 0) -> tuple[Index, SplitDetections]:
    """Twelve images and four classes, the last without objects; jittered and random detections."""
    rng = np.random.default_rng(seed)
    images, parts = [], []
    for row in range(12):
        count = int(rng.integers(0, 6))
        corners = rng.uniform(0, 150, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(4, 120, (count, 2))], axis=1)
        labels = rng.integers(0, 3, count)
        images.append((boxes, labels, rng.random(count) < 0.2))
        noise = rng.normal(0, 6, (count, 4))
        detections = np.concatenate([boxes + noise, boxes + noise / 4, boxes[:1]])
        detections[:, 2:] = np.maximum(detections[:, 2:], detections[:, :2] + 1)
        guessed = np.concatenate([labels, labels, rng.integers(0, 4, len(boxes[:1]))])
        parts.append(SplitDetections.of_image(row, detections, rng.random(len(detections)), guessed))
    return make_index(*images), SplitDetections.concat(parts)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_from_files(make_index: MakeIndex, tmp_path: Path, seed: int) -> None:
    index, results = random_case(make_index, seed)
    ids = index.image_ids()
    annotations: list[dict[str, Any]] = []
    for row in range(len(index)):
        one = index[row]
        for i in range(len(one.boxes)):
            x1, y1, x2, y2 = map(float, one.boxes[i])
            crowd = int(one.difficult[i])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(ids[row]),
                    "category_id": int(one.labels[i]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(one.areas[i]),
                    "iscrowd": crowd,
                    "ignore": crowd,
                    "difficult": crowd,
                }
            )
    truth = {
        "info": {},
        "images": [{"id": int(i)} for i in ids],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate("abcd")],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results.to_coco(index)))
    official = COCO(str(tmp_path / "truth.json"))
    evaluator = COCOeval(official, official.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    score = coco_metrics.score(index, results, "abcd")
    assert list(score.stats.values()) == evaluator.stats.tolist()
    official_precision = evaluator.eval["precision"][:, :, :, 0, -1]
    assert np.array_equal(np.where(np.isnan(score.precision), -1, score.precision), official_precision)


def test_perfect_detections(make_index: MakeIndex, perfect: FindAll) -> None:
    index = make_index(([[0, 0, 20, 20], [50, 50, 150, 150]], [0, 1]), ([[5, 5, 60, 60]], [1]))
    score = coco_metrics.score(index, perfect(index), ["a", "b"])
    assert [score.stats[name] for name in ("AP", "AP50", "AP75", "AR100")] == pytest.approx([1] * 4)
    assert score.per_class["AP75"].tolist() == pytest.approx([1, 1])


def test_no_detections_score_zero_and_no_objects_nan(make_index: MakeIndex) -> None:
    index = make_index(([[0, 0, 50, 50]], [0]))
    score = coco_metrics.score(index, SplitDetections.concat([]), ["a", "b"])
    assert score.stats["AP"] == 0.0
    assert math.isnan(score.stats["AP_small"])
    assert score.per_class["AP"][0] == 0.0
    assert math.isnan(score.per_class["AP"][1])


def test_no_images(make_index: MakeIndex) -> None:
    score = coco_metrics.score(make_index(), SplitDetections.concat([]), ["a", "b"])
    assert list(score.stats) == list(coco_metrics.STATS)
    assert all(map(math.isnan, score.stats.values()))
    assert score.precision.shape == (10, 101, 2)


def test_difficult_and_crowd_objects_are_ignored(make_index: MakeIndex, perfect: FindAll) -> None:
    flagged = ([[0, 0, 50, 50], [100, 100, 150, 150]], [0, 0], [False, True])
    for index in (make_index(flagged), make_index(flagged, crowd=True)):
        assert coco_metrics.score(index, perfect(index), ["a"]).stats["AP"] == pytest.approx(1)
        without = perfect(index).select(np.array([True, False]))
        assert coco_metrics.score(index, without, ["a"]).stats["AP"] == pytest.approx(1)
