"""Running a detector over pictures.

What a detector finds on one picture, as plain values that people and JSON can read.

Everything that is said about a detector on a split: one sparse pass, and all scores and tables from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.data.index import Index
from detection.data.loading.batch import collate
from detection.data.loading.loader import DetectionDataset, Loader, eval_sample, loader_workers
from detection.device import autocast, pick_device, pick_precision
from detection.evaluation.analysis import bootstrap
from detection.evaluation.analysis.bootstrap import BootstrapSample
from detection.evaluation.analysis.tables import Tables, build_tables, per_class_table, pr_curve_table
from detection.evaluation.protocol import coco_metrics, oracle, voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps, image_order
from detection.evaluation.protocol.results import SplitDetections
from detection.models.detector import Detections, Detector
from detection.params.recipe import Recipe


def run_detector(
    detector: Detector,
    index: Index,
    root: Path,
    recipe: Recipe,
    *,
    batch_size: int,
    device: str = "auto",
    precision: str = "fp32",
    score_threshold: float | None = None,
) -> SplitDetections:
    """Detect on every picture of a split, in batches.

    Args:
        detector: Left in the mode it came in.
        index: The split.
        root: Folder that its files are relative to.
        recipe: Picture size.
        batch_size: Pictures per forward pass.
        device: `auto`, `cpu` or `cuda`; the detector is moved there.
        precision: `auto`, `bf16` or `fp32`.
        score_threshold: Drop what scores lower; None drops nothing more.
    """
    place = pick_device(device)
    dtype = pick_precision(precision, place)
    loader = Loader(
        DetectionDataset(index, root, recipe, train=False), batch_size, loader_workers("auto", place), False
    )
    was_training = detector.training
    detector.to(place).eval()
    parts: list[SplitDetections] = []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            with autocast(place, dtype):
                found = detector.detect(batch.images.to(place, non_blocking=True), batch.sizes)
            parts.append(_pack(batch.rows, found, score_threshold))
    detector.train(was_training)
    return SplitDetections.concat(parts)


def detect_image(detector: Detector, recipe: Recipe, picture: Tensor) -> Detections:
    """Detect on one picture, Tensor[3, H, W] uint8 RGB; boxes come back in its pixels, on the CPU."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    batch = collate([eval_sample(picture, *nothing, 0, recipe)], recipe)
    with torch.inference_mode():
        found = detector.detect(batch.images.to(next(detector.parameters()).device), batch.sizes)[0]
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())


def _pack(rows: Sequence[int], found: Sequence[Detections], score_threshold: float | None) -> SplitDetections:
    """A batch's detections on the host: three copies that wait for the device, not three a picture."""
    boxes, scores, labels = (
        torch.cat([getattr(one, part) for one in found]).cpu() for part in ("boxes", "scores", "labels")
    )
    images = np.repeat(rows, [len(one.scores) for one in found])
    results = SplitDetections.pack(images, boxes, scores, labels)
    return results if score_threshold is None else results.select(results.scores >= score_threshold)


def above_threshold(found: Detections, threshold: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Boxes [M, 4], scores [M] and labels [M] of the detections that score `threshold` or more."""
    kept = found.scores >= threshold
    return tuple(part[kept].numpy() for part in (found.boxes, found.scores, found.labels))  # type: ignore[return-value]


def detections_to_json(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """One `{box, label, class, score}` a detection.

    Args:
        boxes: [M, 4] `x1, y1, x2, y2`, pixels of the picture as stored, 0-based, half-open; written to 0.01.
        scores: [M], written to 0.0001.
        labels: [M], counted from 0.
        classes: Names, in label order.
    """
    return [
        {
            "box": [round(float(side), 2) for side in box],
            "label": int(label),
            "class": classes[int(label)],
            "score": round(float(score), 4),
        }
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores and tables."""

    stats: dict[str, float]
    """COCO's twelve numbers and VOC's two; NaN where there is nothing to find."""
    ap: dict[str, float]
    """COCO's AP of each class."""
    tables: Tables
    """By file name: those of `analysis.tables`, and `metrics.json` (the stats), `intervals.json` (see
    `bootstrap.Spread.to_json`), `per_class.csv` and `pr_curves.csv`."""

    def row(self) -> dict[str, float]:
        """The scores as an experiment's row names them: `test/AP`, and `test/AP/person` of each class."""
        by_class = {f"AP/{name}": value for name, value in self.ap.items()}
        return {f"test/{name}": float(value) for name, value in {**self.stats, **by_class}.items()}


def evaluate(
    index: Index,
    results: SplitDetections,
    classes: Sequence[str],
    *,
    verify: bool = False,
    rounds: int = bootstrap.DEFAULT_ROUNDS,
) -> Evaluation:
    """Score by COCO's and VOC's protocols, and say why the detector fails and how far chance goes.

    Args:
        index: The ground truth.
        results: Detections on its pictures.
        classes: Names, in label order.
        verify: Run pycocotools too.
        rounds: Of the bootstrap.

    Raises:
        VerificationError: pycocotools says another number.
    """
    overlaps = Overlaps.of_index(index, results, len(classes))
    matches = match(overlaps)
    by_coco, by_voc = coco_metrics.score_matches(overlaps, matches), voc_metrics.score_overlaps(overlaps)
    if verify:
        oracle.verify(overlaps, by_coco)
    order = image_order(index)
    ids = [name.decode() for name in index.ids[order]]
    spread = bootstrap.intervals(BootstrapSample.of(overlaps, matches, num_images=len(index)), rounds=rounds)
    stats = {**by_coco.stats, **by_voc.stats}
    tables = {
        **build_tables(overlaps, matches, classes, ids, index.sizes[order]),
        "metrics.json": dict(stats),
        "intervals.json": spread.to_json(classes),
        "per_class.csv": per_class_table(classes, by_coco, by_voc, index),
        "pr_curves.csv": pr_curve_table(classes, by_coco),
    }
    ap = dict(zip(classes, by_coco.per_class["AP"].tolist(), strict=True))
    return Evaluation(stats=stats, ap=ap, tables=tables)
