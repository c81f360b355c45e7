"""Inference: a detector over a split or over one image, and its detections as JSON."""

from collections.abc import Sequence
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
