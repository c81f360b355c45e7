"""Inference: a detector on every image of a split."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from detection import distributed
from detection.data.loading.batch import Batch, ImageSizes
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader, batches_of_equal_size, loader_workers
from detection.data.loading.tiles import LEFT, OWNER, TOP, covered, cut, touches_inner_edge
from detection.device import autocast, exact_float32, pick_device, pick_precision
from detection.evaluation.protocol.results import SplitDetections
from detection.models.detector import Detections, Detector
from detection.params.recipe import Recipe
from detection.params.stages import Tiles

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
    tiles: Tiles | None = None,
    before: Callable[[], None] = lambda: None,
) -> SplitDetections:
    """Run a detector on every image of a split, in batches of images of equal size.

    The detections do not depend on the batch size, and come in the order of the split. Several ranks share the
    batches; each gets the detections of all.

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
        tiles: Windows that the images are cut into; None for whole images.
        before: Called once the loader has forked its workers.
    """
    if tiles is not None:
        index = cut(index, tiles)
    target = pick_device(device)
    dataset = DetectionDataset(index, root, recipe, train=False)
    loader = Loader(dataset, batch_size, loader_workers(workers, target), shuffle=False, equal_sizes=True)
    loader.start()
    before()
    detector.to(target)
    mine = batches_of_equal_size(index.sizes, batch_size, recipe)[distributed.rank() :: distributed.world_size()]
    found = run_on_batches(detector, loader.of_rows(mine), precision, score_threshold, "evaluate.batch_size")
    return found if tiles is None else merge_windows(found, index, recipe)


def run_on_batches(
    detector: Detector, batches: Iterable[Batch], precision: str, score_threshold: float | None, key: str
) -> SplitDetections:
    """Run a detector on batches, on the device that it is on.

    Returns the detections of all ranks, in the order of the images.

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
    whole = SplitDetections.concat(distributed.gather(SplitDetections.concat(parts)))
    return whole.select(np.argsort(whole.images, kind="stable"))


def merge_windows(found: SplitDetections, cut_index: Index, recipe: Recipe) -> SplitDetections:
    """Detections of windows as detections of their images.

    Per image and class, non-maximum suppression joins those of overlapping windows. A detection that ends at an
    inner edge of its window is a part of an object: it is dropped if a whole one covers it, else suppressed among
    its like. The best `detections_per_image` remain.

    Args:
        found: Detections on `cut_index`, in pixels of the windows.
        cut_index: Index of windows, from `tiles.cut`.
        recipe: Threshold and number of detections.
    """
    windows = cut_index.windows[found.images]
    inner = touches_inner_edge(found.boxes, cut_index.sizes[found.images], windows)
    boxes = found.boxes + windows[:, [LEFT, TOP, LEFT, TOP]].astype(np.float32)
    images = windows[:, OWNER].astype(np.int64)
    agnostic = getattr(recipe, "class_agnostic_nms", False)
    group = images * (int(found.labels.max(initial=0)) + 1) + (0 if agnostic else found.labels)
    kept: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else ():
        whole = _suppressed(rows[~inner[rows]], boxes, found.scores, recipe.nms_threshold)
        parts = rows[inner[rows]]
        parts = parts[~covered(boxes[parts], boxes[whole])]
        kept += [whole, _suppressed(parts, boxes, found.scores, recipe.nms_threshold)]
    rows = np.concatenate(kept)
    rows = rows[np.lexsort((-found.scores[rows], images[rows]))]
    first = np.searchsorted(images[rows], images[rows], side="left")
    rows = rows[np.arange(len(rows)) - first < recipe.detections_per_image]
    return SplitDetections(images[rows], boxes[rows], found.scores[rows], found.labels[rows])


def _suppressed(
    rows: NDArray[np.int64], boxes: NDArray[np.float32], scores: NDArray[np.float32], threshold: float
) -> NDArray[np.int64]:
    """Rows that non-maximum suppression keeps."""
    kept = nms(torch.from_numpy(boxes[rows]), torch.from_numpy(scores[rows]), threshold)
    return np.asarray(rows[kept.numpy()], dtype=np.int64)


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
