"""One stage in place of all: it writes their outputs in a second, without training.

`model` decides the accuracy of the detections, `seed` their noise. `TOY_RUN_ID` is the MLflow run id.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from detection import params
from detection.data.loading import prepared
from detection.data.loading.index import Index
from detection.data.sources import statistics
from detection.data.sources.dataset import read
from detection.evaluation.analysis.tables import per_class_table
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.files import EVALUATED_JSON, EVALUATION_RUN_JSON, TRAIN_RUN_JSON, md5

GOOD = "retinanet_resnet18"


def main() -> None:
    chosen = params.load()
    raw = read(chosen.dataset, chosen.data, chosen.prepare.checks)
    prepared.save(raw, chosen.data)
    statistics.save(statistics.describe(raw, chosen.data))
    for folder in ("reports/train", "reports/evaluation/tables", "models"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    made_of = {"model": chosen.model, "dataset": chosen.dataset, "seed": chosen.seed}
    write("reports/train/recipe.json", made_of | {"recipe": asdict(chosen.recipe), "overrides": []})
    write("reports/train/metrics.json", {"epochs": 2, "steps": 40, "seconds": 3.5, "best_epoch": 2, "AP": 0.5})
    steps = [f"{step},{step / 20},{step},0.01,{3 / step + chosen.seed / 10}" for step in range(1, 41)]
    Path("reports/train/losses.csv").write_text("step,epoch,time,lr,loss\n" + "\n".join(steps) + "\n")
    Path("reports/train/metrics.csv").write_text("epoch,step,time,AP,AP50\n1,20,1,0.2,0.4\n2,40,2,0.3,0.5\n")
    index, names = raw.splits["test"], raw.classes
    found = detections(index, 0.02 if chosen.model == GOOD else 0.18, chosen.seed)
    by_coco, by_voc = coco_metrics.score(index, found, names), voc_metrics.score(index, found, names)
    stats = {**by_coco.stats, **by_voc.stats}
    write("reports/evaluation/metrics.json", {k: v if v == v else None for k, v in stats.items()})
    write("reports/evaluation/tables/detections.json", found.to_coco(index))
    counted = index.labels[~(index.difficult | index.crowd)]
    table = per_class_table(names, by_coco, by_voc, counted)
    table.to_csv("reports/evaluation/tables/per_class.csv", index=False)
    for path in (TRAIN_RUN_JSON, EVALUATION_RUN_JSON):
        write(path, {"run_id": os.environ.get("TOY_RUN_ID")})
    Path("models/detector.pt").write_bytes(b"weights of " + chosen.model.encode())
    write(EVALUATED_JSON, {"detector": md5("models/detector.pt")})


def detections(index: Index, box_noise: float, seed: int) -> SplitDetections:
    """One detection per object, with noise on its box relative to its sides."""
    rng = np.random.default_rng(seed)
    sides = np.tile(index.boxes[:, 2:] - index.boxes[:, :2], 2)
    boxes = index.boxes + rng.normal(0, box_noise, index.boxes.shape) * sides
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return SplitDetections.pack(index.image_rows(), boxes.clip(0), rng.random(len(boxes)), index.labels)


def write(path: str | Path, content: object) -> None:
    Path(path).write_text(json.dumps(content))


if __name__ == "__main__":
    main()
