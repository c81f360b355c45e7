"""Validation on `val` during training, and sample images with ground truth and detections."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detection import distributed
from detection.data.loading.batch import Sample
from detection.data.loading.image_io import decode
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader, batches_of_equal_size, in_order
from detection.data.loading.tiles import cut
from detection.device import autocast, exact_float32, pick_precision
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from detection.inference import merge_windows, run_on_batches
from detection.models.detector import Detector
from detection.models.heads import meters
from detection.params.recipe import Recipe
from detection.params.stages import Tiles
from detection.report.images.contact_sheet import draw_boxes

TRAIN_SAMPLE_IMAGES = 16
"""Training images that are scored and drawn if the dataset has no val split."""
SAMPLE_SCORE_THRESHOLD = 0.3
"""Minimum score of drawn detections; scores are low early in training."""


class LossDataset(DetectionDataset):
    """Images as in detection, without augmentation; objects as in training, without crowds and difficult ones."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        sample, record = super().__getitem__(key), self.index[key[1]]
        trained = ~record.crowd & (self.recipe.train_difficult | ~record.difficult)
        return replace(sample, boxes=sample.boxes[trained], labels=sample.labels[trained])


@dataclass(frozen=True, slots=True)
class Validator:
    """Validation of a detector on `val`."""

    index: Index
    """The split; may be empty."""
    root: Path
    """Folder that the index's files are relative to."""
    classes: tuple[str, ...]
    """Class names, in label order."""
    recipe: Recipe
    """Recipe, for the image size."""
    precision: str
    """Precision of the forward pass: `auto`, `bf16` or `fp32`."""
    batch_size: int = 16
    """Images per forward pass."""
    workers: int = 0
    """Data loading processes, which serve all validations; 0 loads in this process."""
    tiles: Tiles | None = None
    """Windows that the images are cut into."""
    loaded: Index = field(init=False)
    """Input of the detector: the images, or their windows."""
    loader: Loader = field(init=False)
    """Batches of `loaded`."""

    def __post_init__(self) -> None:
        """Make the loader."""
        object.__setattr__(self, "loaded", cut(self.index, self.tiles) if self.tiles else self.index)
        dataset = LossDataset(self.loaded, self.root, self.recipe, train=False)
        object.__setattr__(self, "loader", Loader(dataset, self.batch_size, self.workers, False, equal_sizes=True))

    def start(self) -> None:
        """Fork the workers now; a no-op for an empty split."""
        if len(self.index):
            self.loader.start()

    def validate(self, detector: Detector) -> tuple[dict[str, float], SplitDetections]:
        """Return COCO's 12 metrics and VOC's two APs, and the detections.

        Each rank runs the detector on its share of the batches, so that the detections are those of a single process;
        all ranks compute the metrics of the split.
        """
        batches = batches_of_equal_size(self.loaded.sizes, self.batch_size, self.recipe)
        loaded = self.loader.of_rows(batches[distributed.rank() :: distributed.world_size()])
        detections = run_on_batches(detector, loaded, self.precision, None, "train.validate_batch_size")
        if self.tiles:
            detections = merge_windows(detections, self.loaded, self.recipe)
        overlaps = Overlaps.of_index(self.index, detections, len(self.classes))
        coco = coco_metrics.score_matches(overlaps, match(overlaps))
        return {**coco.stats, **voc_metrics.score_overlaps(overlaps).stats}, detections

    def loss(self, detector: Detector) -> float:
        """Mean loss over the split, in detection mode; training's random numbers and meters are left alone.

        All ranks run all images: some losses are normalized over the ranks, which must take part equally often.
        """
        device, was_training = next(detector.parameters()).device, detector.training
        dtype = pick_precision(self.precision, device)
        total = torch.zeros((), device=device)
        detector.eval()
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), exact_float32(device), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            for batch in self.loader.of_rows(in_order(np.arange(len(self.loaded)), self.batch_size)):
                with autocast(device, dtype):
                    losses = detector.losses(batch.images.to(device, non_blocking=True), batch.targets.to(device))
                total += torch.stack(list(losses.values())).sum() * len(batch.rows)
        detector.train(was_training)
        for meter in meters(detector).values():
            meter.reset()
        return float(total) / len(self.loaded)

    def draw(self, detections: SplitDetections, count: int, path: Path) -> Path:
        """Draw the first `count` images of the split: ground truth on the left, detections on the right."""
        rows = []
        for i in range(min(count, len(self.index))):
            record = self.index[i]
            image = decode(self.root / record.file, (record.height, record.width), upright=record.upright)
            mine = (detections.images == i) & (detections.scores >= SAMPLE_SCORE_THRESHOLD)
            boxes, labels, scores = detections.boxes[mine], detections.labels[mine], detections.scores[mine]
            left = draw_boxes(image, record.boxes, record.labels, self.classes)
            right = draw_boxes(image, boxes, labels, self.classes, scores)
            rows.append(np.concatenate([np.asarray(left), np.asarray(right)], axis=1))
        width = max(row.shape[1] for row in rows)
        sheet = np.concatenate([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(path)
        return path


def train_sample(validator: Validator, index: Index) -> Validator:
    """Validator on a fixed handful of training images, spread over the split, for datasets without val.

    Args:
        validator: Validator on the empty val split, for its settings.
        index: The training split.
    """
    rows = np.unique(np.linspace(0, len(index) - 1, TRAIN_SAMPLE_IMAGES).astype(int))
    return replace(validator, index=index.select(rows))
