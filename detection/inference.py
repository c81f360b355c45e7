"""Inference: a detector on every image of a split."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from detection.data.loading.batch import Batch, ImageSizes
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader, loader_workers
from detection.device import autocast, exact_float32, pick_device, pick_precision
from detection.evaluation.protocol.results import SplitDetections
from detection.models.detector import Detections, Detector
from detection.params.recipe import Recipe

log = logging.getLogger(__name__)


def run_detector(
    detector: Detector,
    index: Index,
    root: Path,
    recipe: Recipe,
    *,
    batch_size: int,
    workers: int | str = "auto",
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
        workers: Data loading processes, as `train.workers`.
        device: `auto`, `cpu` or `cuda`; the detector is moved there.
        precision: `auto`, `bf16` or `fp32`.
        score_threshold: Minimum score of returned detections; None for no further limit.
    """
    target = pick_device(device)
    dataset = DetectionDataset(index, root, recipe, train=False)
    loader = Loader(dataset, batch_size, loader_workers(workers, target), shuffle=False, equal_sizes=True)
    detector.to(target)
    return run_on_batches(detector, loader.epoch(0), precision, score_threshold, "evaluate.batch_size")


def run_on_batches(
    detector: Detector, batches: Iterable[Batch], precision: str, score_threshold: float | None, key: str
) -> SplitDetections:
    """Run a detector on batches, on the device that it is on.

    The first time that a GPU has too little memory for a batch, it and all later ones are halved.

    Args:
        detector: Detector; its training mode is restored at the end.
        batches: Images, padded and unaugmented.
        precision: `auto`, `bf16` or `fp32`.
        score_threshold: Minimum score of returned detections; None for no further limit.
        key: Parameter that sets the batch size, for the message.

    Raises:
        torch.OutOfMemoryError: The GPU has too little memory for half a batch, too.
    """
    device = next(detector.parameters()).device
    dtype = pick_precision(precision, device)
    was_training, halved = detector.training, False
    detector.eval()
    parts: list[SplitDetections] = []
    with torch.inference_mode(), exact_float32(device):
        for batch in batches:
            detections = None if halved else _detect_in_memory(detector, batch, device, dtype)
            if detections is None:
                if not halved:
                    log.warning("out of GPU memory with %d images: halving the batch; lower %s", len(batch.rows), key)
                halved = True
                middle = -(-len(batch.rows) // 2)
                slices = (slice(0, middle), slice(middle, None))
                detections = [one for part in slices for one in _detect(detector, batch, part, device, dtype)]
            parts.append(_pack(batch.rows, detections, score_threshold))
    detector.train(was_training)
    whole = SplitDetections.concat(parts)
    return whole.select(np.argsort(whole.images, kind="stable"))


def _detect_in_memory(
    detector: Detector, batch: Batch, device: torch.device, dtype: torch.dtype
) -> list[Detections] | None:
    """Detections on a batch; None if the GPU has too little memory for it, but perhaps enough for half of it."""
    try:
        return _detect(detector, batch, slice(None), device, dtype)
    except torch.OutOfMemoryError:
        if len(batch.rows) == 1:
            raise
    return None  # not in the handler: the error's traceback keeps the tensors of the failed pass alive


def _detect(
    detector: Detector, batch: Batch, part: slice, device: torch.device, dtype: torch.dtype
) -> list[Detections]:
    """Detections on a slice of a batch."""
    sizes = ImageSizes(batch.sizes.resized[part], batch.sizes.original[part])
    with autocast(device, dtype):
        return detector.detect(batch.images[part].to(device, non_blocking=True), sizes) if len(sizes.resized) else []


def _pack(rows: Sequence[int], detections: Sequence[Detections], score_threshold: float | None) -> SplitDetections:
    """Copy a batch's detections to the host: three copies that wait for the device, not three per image."""
    boxes, scores, labels = (
        torch.cat([getattr(one, field) for one in detections]).cpu() for field in ("boxes", "scores", "labels")
    )
    images = np.repeat(rows, [len(one.scores) for one in detections])
    packed = SplitDetections.pack(images, boxes, scores, labels)
    return packed if score_threshold is None else packed.select(packed.scores >= score_threshold)
