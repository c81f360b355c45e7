"""Files of a finished experiment, without training."""

import csv
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.loading import prepared
from detection.data.loading.index import Index
from detection.data.sources import statistics
from detection.data.sources.dataset import RawDataset, read
from detection.evaluation.analysis.tables import write_tables
from detection.evaluation.evaluate import evaluate
from detection.evaluation.protocol.results import SplitDetections
from detection.params import ShapesDataset, load
from detection.report.charts import dataset_figures as dataset_figures

ROOT = Path(__file__).parents[2]
SMALL = ShapesDataset(format="shapes", path="shapes", train=24, val=8, test=24, license="drawn here")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with the outputs of every stage before `plots`; read-only."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(ROOT / "params.yaml", folder)
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(folder / "raw"))
        os.chdir(folder)
        try:
            write_experiment(folder / "reports")
        finally:
            os.chdir(before)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of `finished` as the current directory."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "work/raw"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "work"))
    return tmp_path / "work"


def write_experiment(reports: Path) -> None:
    """Write `data/prepared` and all of `reports/`."""
    raw = read("shapes", SMALL)
    prepared.save(raw, SMALL)
    statistics.save(statistics.describe(raw, SMALL))
    dataset_figures.save_figures(raw)
    for name in ("pretrain", "train", "evaluation"):
        (reports / name).mkdir(parents=True)
    write_pretraining(reports / "pretrain")
    write_training(reports / "train", raw)
    write_evaluation(reports / "evaluation", raw)


def write_pretraining(folder: Path) -> None:
    curve = [
        {
            "epoch": epoch,
            "lr": 0.05 * math.cos(epoch / 8) ** 2,
            "loss": 1.4 * math.exp(-epoch / 4) + 0.05,
            "accuracy": 1 - 0.75 * math.exp(-epoch / 3),
            "val_accuracy": 0.93 - 0.65 * math.exp(-epoch / 3),
        }
        for epoch in range(1, 13)
    ]
    write_csv(folder / "curves.csv", curve)
    summary = {"method": "crops", "crops": 1550, "seconds": 41.2} | curve[-1]
    (folder / "metrics.json").write_text(json.dumps(summary))


def write_training(folder: Path, raw: RawDataset, steps: int = 720, epochs: int = 12) -> None:
    rng = np.random.default_rng(0)
    losses = []
    for step in range(1, steps + 1):
        part = step / steps
        terms = {
            "classification": (1.1 * math.exp(-5 * part) + 0.25) * rng.lognormal(0, 0.18),
            "bbox_regression": (0.7 * math.exp(-3 * part) + 0.2) * rng.lognormal(0, 0.15),
        }
        lr = 5e-4 * min(1, step / 100) * (1 + math.cos(math.pi * part)) / 2
        losses.append(
            {
                "step": step,
                "epoch": round(part * epochs, 4),
                "time": 1_790_000_000_000 + 400 * step,
                "lr": lr,
                "loss": sum(terms.values()),
                **terms,
            }
        )
    write_csv(folder / "losses.csv", losses)
    scores = [
        {
            "epoch": epoch,
            "step": epoch * steps // epochs,
            "time": 1_790_000_000_000,
            "AP": 0.42 * (1 - math.exp(-epoch / 4)) - (0.02 if epoch > 10 else 0),
            "AP50": 0.74 * (1 - math.exp(-epoch / 3)) - (0.03 if epoch > 10 else 0),
            "AP75": 0.40 * (1 - math.exp(-epoch / 5)),
            "voc_ap50_11pt": 0.72 * (1 - math.exp(-epoch / 3)),
        }
        for epoch in range(1, epochs + 1)
    ]
    write_csv(folder / "metrics.csv", scores)
    best = max(scores, key=lambda row: row["AP50"])
    summary = {"steps": steps, "epochs": epochs, "seconds": 317.4}
    summary |= {"best_epoch": best["epoch"], "AP50": best["AP50"]}
    (folder / "metrics.json").write_text(json.dumps(summary))
    (folder.parent / "train_run.json").write_text('{"run_id": null}')
    write_recipe(folder / "recipe.json", raw.classes)


def write_recipe(path: Path, classes: tuple[str, ...]) -> None:
    from dataclasses import asdict

    params = load(ROOT / "params.yaml")
    made_of: dict[str, Any] = {"model": params.model, "dataset": params.dataset, "seed": params.seed}
    made_of["overrides"] = [asdict(one) for one in params.overrides]
    made_of |= {"recipe": asdict(params.recipe), "classes": classes}
    path.write_text(json.dumps(made_of))


def write_evaluation(folder: Path, raw: RawDataset) -> None:
    index = raw.splits["test"]
    results = plausible(index, len(raw.classes))
    evaluation = evaluate(index, results, raw.classes, rounds=100)
    detections = json.dumps(results.to_coco(index)).encode()
    write_tables(folder / "tables", {**evaluation.tables, "detections.json": detections})
    write_tables(folder, {"metrics.json": evaluation.stats})
    write_speed(folder / "tables/speed.json")
    (folder / "run.json").write_text('{"run_id": null}')


def write_speed(path: Path) -> None:
    measured = {
        "device": "a processor",
        "threads": 2,
        "precision": "float32",
        "torch": "2.11",
        "parameters": 12_345_678,
        "weights_mib": 47.1,
        "image_size": [128, 160],
        "gflops": 3.25,
        "latency_ms": {"median": 21.5, "p95": 24.25, "rounds": 30},
        "throughput": {"images_per_s": 61.5, "slowest": 48.0, "batch_size": 16, "rounds": 9},
        "peak_mib": 1234.5,
    }
    path.write_text(json.dumps(measured))


def plausible(index: Index, classes: int, seed: int = 0) -> SplitDetections:
    """Detections of a fair detector: most objects, with noise, some duplicates, some false positives."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    sides = np.tile(index.boxes[:, 2:] - index.boxes[:, :2], 2)
    parts = []
    for fraction, noise, low in ((0.85, 0.05, 0.35), (0.4, 0.12, 0.05), (0.2, 0.6, 0.0)):
        kept = rng.random(len(owners)) < fraction
        boxes = (index.boxes + rng.normal(0, noise, index.boxes.shape) * sides)[kept]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
        labels = np.where(rng.random(kept.sum()) < 0.9, index.labels[kept], rng.integers(0, classes, kept.sum()))
        scores = low + (1 - low) * rng.beta(2, 1.5, kept.sum())
        parts.append(SplitDetections.pack(owners[kept], boxes.clip(0, None), scores, labels))
    return SplitDetections.concat(parts)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
