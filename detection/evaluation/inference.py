"""Running a detector over pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detection.data.index import Index
from detection.data.loader import Loader, Pictures, collate, loader_workers, whole
from detection.evaluation.results import Results
from detection.models.hardware import autocast, pick_device, pick_precision
from detection.models.protocol import Detections, Detector
from detection.params.recipe import Recipe


def run(
    detector: Detector,
    index: Index,
    root: Path,
    recipe: Recipe,
    *,
    batch_size: int,
    device: str = "auto",
    precision: str = "fp32",
    score_threshold: float | None = None,
) -> Results:
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
        Pictures(index, root, recipe, train=False), batch_size, loader_workers("auto", place), False
    )
    was_training = detector.training
    detector.to(place).eval()
    parts: list[Results] = []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            with autocast(place, dtype):
                found = detector.detect(batch.images.to(place, non_blocking=True), batch.sizes)
            parts += [_pack(row, one, score_threshold) for row, one in zip(batch.rows, found, strict=True)]
    detector.train(was_training)
    return Results.concat(parts)


def detect_picture(detector: Detector, recipe: Recipe, picture: Tensor) -> Detections:
    """Detect on one picture, Tensor[3, H, W] uint8 RGB; boxes come back in its pixels, on the CPU."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    batch = collate([whole(picture, *nothing, 0, recipe)], recipe)
    with torch.inference_mode():
        found = detector.detect(batch.images.to(next(detector.parameters()).device), batch.sizes)[0]
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())


def _pack(row: int, found: Detections, score_threshold: float | None) -> Results:
    scores = found.scores.cpu().numpy()
    kept = scores >= (score_threshold or 0)
    boxes, labels = found.boxes.cpu().numpy(), found.labels.cpu().numpy()
    return Results.of_image(row, boxes[kept], scores[kept], labels[kept])
