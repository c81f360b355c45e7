"""Inference: a detector on every image of a split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader, loader_workers
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
    """Run a detector on every image of a split, in batches of images of equal size.

    The detections do not depend on the batch size, and come in the order of the split.

    Args:
        detector: Detector; its training mode is restored at the end.
        index: The split.
        root: Folder that the index's files are relative to.
        recipe: Recipe, for the image size.
        batch_size: Images per forward pass.
        device: `auto`, `cpu` or `cuda`; the detector is moved there.
        precision: `auto`, `bf16` or `fp32`.
        score_threshold: Minimum score of returned detections; None for no further limit.
    """
    target = pick_device(device)
    dtype = pick_precision(precision, target)
    dataset = DetectionDataset(index, root, recipe, train=False)
    loader = Loader(dataset, batch_size, loader_workers("auto", target), shuffle=False, equal_sizes=True)
    was_training = detector.training
    detector.to(target).eval()
    parts: list[SplitDetections] = []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            with autocast(target, dtype):
                batch_detections = detector.detect(batch.images.to(target, non_blocking=True), batch.sizes)
            parts.append(_pack(batch.rows, batch_detections, score_threshold))
    detector.train(was_training)
    detections = SplitDetections.concat(parts)
    return detections.select(np.argsort(detections.images, kind="stable"))


def _pack(rows: Sequence[int], detections: Sequence[Detections], score_threshold: float | None) -> SplitDetections:
    """Copy a batch's detections to the host: three copies that wait for the device, not three per image."""
    boxes, scores, labels = (
        torch.cat([getattr(one, field) for one in detections]).cpu() for field in ("boxes", "scores", "labels")
    )
    images = np.repeat(rows, [len(one.scores) for one in detections])
    packed = SplitDetections.pack(images, boxes, scores, labels)
    return packed if score_threshold is None else packed.select(packed.scores >= score_threshold)
