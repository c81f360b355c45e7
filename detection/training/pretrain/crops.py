"""Classification dataset of the training objects and of background, cut out of the images, in memory.

Letters: B crops of a batch, C crops, P side of a stored crop, S side of a crop in training; in pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection import distributed
from detection.data.loading.geometry import Geometry, Window
from detection.data.loading.image_io import read_image
from detection.data.loading.index import Index
from detection.data.loading.loader import BatchSampler
from detection.ops.boxes import intersections
from detection.params.stages import Crops
from detection.training.pretrain.classifier import VAL_BATCH_SIZE, Batches

STORED_SCALE = 1.25
"""P / S: crops are stored larger than they are used, for random shifts."""
FILL = (124, 116, 104)  # ImageNet's mean color
MAX_OBJECT_FRACTION = 0.1
"""Largest fraction of a background crop that one object may cover."""
BACKGROUND_TRIALS = 10


@dataclass(frozen=True, slots=True)
class CropSet:
    """Crops of one split."""

    pixels: Tensor
    """Tensor[C, 3, P, P], uint8."""
    labels: Tensor
    """Tensor[C], int64; background has the number of classes as its label."""

    def __len__(self) -> int:
        return len(self.labels)


class CropData:
    """Batches of crops, shuffled and augmented; a batch is a function of (seed, epoch, batch).

    Args:
        train: Training crops.
        val: Val crops; may be empty.
        settings: Crop size and batch size.
        seed: Seed of the order and the augmentation.
    """

    def __init__(self, train: CropSet, val: CropSet, settings: Crops, seed: int) -> None:
        self.train, self.val, self.side = train, val, settings.image_size
        self.sampler = BatchSampler(len(train), settings.batch_size, seed)

    def __len__(self) -> int:
        """Training batches per epoch."""
        return len(self.sampler)

    def train_batches(self, epoch: int, skip: int) -> Batches:
        """See `ClassificationData`."""
        self.sampler.epoch, self.sampler.start = epoch, skip
        for number, batch in enumerate(self.sampler, skip):
            rows = torch.tensor([row for _, row in batch])
            rng = np.random.default_rng((self.sampler.seed or 0, epoch, number, distributed.rank()))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            yield augment(self.train.pixels[rows], self.side, generator), self.train.labels[rows]

    def val_batches(self) -> Batches:
        """See `ClassificationData`."""
        rows = torch.arange(distributed.rank(), len(self.val), distributed.world_size())
        for first in range(0, len(rows), VAL_BATCH_SIZE):
            part = rows[first : first + VAL_BATCH_SIZE]
            yield center_crop(self.val.pixels[part], self.side), self.val.labels[part]


def cut_crops(index: Index, root: Path, settings: Crops, classes: int, seed: int) -> CropSet:
    """Cut every object out of a split's images, with a margin, and background crops in proportion.

    Args:
        index: The split.
        root: Folder that the index's files are relative to.
        settings: Size, margin, ratio of background to objects, and limit on the number of crops.
        classes: Number of classes; background gets this number as its label.
        seed: Seed of the background crops, and of the selection of images if the limit is exceeded.
    """
    rng = np.random.default_rng(seed)
    side = round(settings.image_size * STORED_SCALE)
    rows = rng.permutation(len(index)) if len(index.labels) > settings.limit else np.arange(len(index))
    pixels: list[Tensor] = []
    labels: list[int] = []
    for row in rows:
        record = index[int(row)]
        keep = ~record.difficult & ~record.crowd
        image = read_image(root / record.file, (record.height, record.width), upright=record.upright)
        windows = [_square_around(box, (1 + settings.context) * STORED_SCALE) for box in record.boxes[keep]]
        labels += [int(label) for label in record.labels[keep]]
        for _ in range(rng.binomial(max(len(windows), 1), settings.background)):
            if (free := _background_window(rng, record.boxes, record.height, record.width)) is not None:
                windows.append(free)
                labels.append(classes)
        pixels += [Geometry(window, side, side).image(image, FILL) for window in windows]
        if len(labels) >= settings.limit:
            break
    if not pixels:
        return CropSet(torch.zeros(0, 3, side, side, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    return CropSet(torch.stack(pixels), torch.tensor(labels))


def augment(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Shift, flip and brighten the crops of a batch at random.

    Args:
        pixels: Tensor[B, 3, P, P], uint8.
        side: S.
        generator: Source of randomness.

    Returns:
        Tensor[B, 3, S, S], float32 in 0..1.
    """
    count, room = len(pixels), pixels.shape[-1] - side
    shifts = torch.randint(0, room + 1, (count, 2), generator=generator).tolist()
    cut = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(pixels, shifts, strict=True)])
    flip = torch.rand(count, generator=generator) < 0.5
    cut = torch.where(flip.view(-1, 1, 1, 1), cut.flip(3), cut)
    brightness = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return (cut.float() / 255 * brightness).clamp(0, 1)


def center_crop(pixels: Tensor, side: int) -> Tensor:
    """Cut the center of crops: Tensor[B, 3, P, P] uint8 to Tensor[B, 3, S, S] float32 in 0..1."""
    start = (pixels.shape[-1] - side) // 2
    return pixels[:, :, start : start + side, start : start + side].float() / 255


def _square_around(box: NDArray[np.float32], scale: float) -> Window:
    """Square window around a box's center, `scale` times its longer side; may reach beyond the image."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(float(max(box[2] - box[0], box[3] - box[1])) * scale / 2, 1)
    left, top = round(float(x) - half), round(float(y) - half)
    side = max(round(2 * half), 2)
    return left, top, left + side, top + side


def _background_window(rng: np.random.Generator, boxes: NDArray[np.float32], height: int, width: int) -> Window | None:
    """Square window of 15 to 50 % of the short side with little of any object; None if no trial finds one."""
    for _ in range(BACKGROUND_TRIALS):
        side = int(rng.uniform(0.15, 0.5) * min(height, width)) + 1
        left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        window = np.array([[left, top, left + side, top + side]], np.float32)
        if intersections(window, boxes).max(initial=0) <= MAX_OBJECT_FRACTION * side * side:
            return left, top, left + side, top + side
    return None
