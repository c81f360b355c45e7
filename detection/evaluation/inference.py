"""Running a detector over pictures."""

from collections.abc import Sequence
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
            parts.append(_pack(batch.rows, found, score_threshold))
    detector.train(was_training)
    return Results.concat(parts)


def detect_picture(detector: Detector, recipe: Recipe, picture: Tensor) -> Detections:
    """Detect on one picture, Tensor[3, H, W] uint8 RGB; boxes come back in its pixels, on the CPU."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    batch = collate([whole(picture, *nothing, 0, recipe)], recipe)
    with torch.inference_mode():
        found = detector.detect(batch.images.to(next(detector.parameters()).device), batch.sizes)[0]
    return Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu())


def _pack(rows: Sequence[int], found: Sequence[Detections], score_threshold: float | None) -> Results:
    """A batch's detections on the host: three copies that wait for the device, not three a picture."""
    boxes, scores, labels = (
        torch.cat([getattr(one, part) for one in found]).cpu() for part in ("boxes", "scores", "labels")
    )
    images = np.repeat(rows, [len(one.scores) for one in found])
    results = Results.pack(images, boxes, scores, labels)
    return results if score_threshold is None else results.select(results.scores >= score_threshold)
