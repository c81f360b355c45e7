"""Inference: a detector on a split or on one image, and its detections as JSON.

Letters: M detections on one image. Boxes are float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open.
"""

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
    """Run a detector on every image of a split, in batches.

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
    loader = Loader(dataset, batch_size, loader_workers("auto", target), shuffle=False)
    was_training = detector.training
    detector.to(target).eval()
    parts: list[SplitDetections] = []
    with torch.inference_mode():
        for batch in loader.epoch(0):
            with autocast(target, dtype):
                detections = detector.detect(batch.images.to(target, non_blocking=True), batch.sizes)
            parts.append(_pack(batch.rows, detections, score_threshold))
    detector.train(was_training)
    return SplitDetections.concat(parts)


def detect_image(detector: Detector, recipe: Recipe, image: Tensor) -> Detections:
    """Run a detector on one image.

    Args:
        detector: Detector in evaluation mode.
        recipe: Recipe, for the image size.
        image: Tensor[3, H, W], uint8, RGB.

    Returns:
        Detections on the CPU, boxes in pixels of `image`.
    """
    no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    batch = collate([eval_sample(image, no_boxes, no_labels, 0, recipe)], recipe)
    with torch.inference_mode():
        (one,) = detector.detect(batch.images.to(next(detector.parameters()).device), batch.sizes)
    return Detections(one.boxes.cpu(), one.scores.cpu(), one.labels.cpu())


def _pack(
    rows: Sequence[int], detections: Sequence[Detections], score_threshold: float | None
) -> SplitDetections:
    """Copy a batch's detections to the host: three copies that wait for the device, not three per image."""
    boxes, scores, labels = (
        torch.cat([getattr(one, field) for one in detections]).cpu()
        for field in ("boxes", "scores", "labels")
    )
    images = np.repeat(rows, [len(one.scores) for one in detections])
    packed = SplitDetections.pack(images, boxes, scores, labels)
    return packed if score_threshold is None else packed.select(packed.scores >= score_threshold)


def above_threshold(
    detections: Detections, threshold: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return boxes [M, 4], scores [M] and labels [M] of the detections with at least this score."""
    keep = detections.scores >= threshold
    return detections.boxes[keep].numpy(), detections.scores[keep].numpy(), detections.labels[keep].numpy()


def detections_to_json(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Return one `{box, label, class, score}` per detection.

    Args:
        boxes: [M, 4] in pixels of the image file; rounded to 0.01.
        scores: [M]; rounded to 0.0001.
        labels: [M], from 0.
        classes: Class names, in label order.
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
