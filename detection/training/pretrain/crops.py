"""Objects cut out of the training pictures, and pieces of background, as a classification dataset in memory.

Letters: C crops, S side of a crop in pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.data.index import Index
from detection.data.loading.geometry import Geometry
from detection.data.loading.image_io import read_image
from detection.ops.boxes import intersections
from detection.params.stages import Crops

SLACK = 1.25  # crops are kept this much larger, for random shifts in training
FILL = (124, 116, 104)  # ImageNet's mean colour
FREE = 0.1  # a piece of background shares at most this much of its area with any object


@dataclass(frozen=True, slots=True)
class CropSet:
    """Crops and what they show."""

    pixels: Tensor
    """Tensor[C, 3, S * SLACK, S * SLACK], uint8."""
    labels: Tensor
    """Tensor[C], int64; the number of classes means background."""

    def __len__(self) -> int:
        return len(self.labels)


def cut_crops(index: Index, root: Path, settings: Crops, classes: int, seed: int) -> CropSet:
    """Cut every object out of a split's pictures, with its surroundings, and about as many background pieces.

    Args:
        index: The split.
        root: Folder that its files are relative to.
        settings: Size, margin, share of background, and the limit on the number of crops.
        classes: Number of classes; background gets this number as its label.
        seed: Of the background's places, and of the choice where there are too many objects.
    """
    rng = np.random.default_rng(seed)
    side = round(settings.image_size * SLACK)
    rows = rng.permutation(len(index)) if len(index.labels) > settings.limit else np.arange(len(index))
    pixels: list[Tensor] = []
    labels: list[int] = []
    for row in rows:
        record = index[int(row)]
        kept = ~record.difficult & ~record.crowd
        picture = read_image(root / record.file, (record.height, record.width))
        windows = [_square(box, (1 + settings.context) * SLACK) for box in record.boxes[kept]]
        names = [int(label) for label in record.labels[kept]]
        for _ in range(rng.binomial(max(len(windows), 1), settings.background)):
            if (free := _background(rng, record.boxes, record.height, record.width)) is not None:
                windows.append(free)
                names.append(classes)
        pixels += [Geometry(window, side, side).image(picture, FILL) for window in windows]
        labels += names
        if len(labels) >= settings.limit:
            break
    if not pixels:
        return CropSet(torch.zeros(0, 3, side, side, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    return CropSet(torch.stack(pixels), torch.tensor(labels))


def augment(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Random shifts, mirroring and brightness of a batch.

    Args:
        pixels: Tensor[B, 3, S * SLACK, S * SLACK], uint8.
        side: S.
        generator: Source of randomness.

    Returns:
        Tensor[B, 3, S, S], float32 in 0..1.
    """
    count, room = len(pixels), pixels.shape[-1] - side
    shifts = torch.randint(0, room + 1, (count, 2), generator=generator).tolist()
    cut = torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(pixels, shifts, strict=True)])
    mirrored = torch.rand(count, generator=generator) < 0.5
    cut = torch.where(mirrored.view(-1, 1, 1, 1), cut.flip(3), cut)
    brightness = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return (cut.float() / 255 * brightness).clamp(0, 1)


def centre(pixels: Tensor, side: int) -> Tensor:
    """The middle of crops, Tensor[B, 3, S * SLACK, S * SLACK] uint8 to Tensor[B, 3, S, S] float32 in 0..1."""
    start = (pixels.shape[-1] - side) // 2
    return pixels[:, :, start : start + side, start : start + side].float() / 255


def _square(box: NDArray[np.float32], scale: float) -> tuple[int, int, int, int]:
    """A square window around a box's centre, `scale` times its longer side; may leave the picture."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(float(max(box[2] - box[0], box[3] - box[1])) * scale / 2, 1)
    left, top = round(float(x) - half), round(float(y) - half)
    width = max(round(2 * half), 2)
    return left, top, left + width, top + width


def _background(
    rng: np.random.Generator, boxes: NDArray[np.float32], height: int, width: int
) -> tuple[int, int, int, int] | None:
    """A square of 15 % to 50 % of the picture that hardly meets an object; None if ten tries find none."""
    for _ in range(10):
        side = int(rng.uniform(0.15, 0.5) * min(height, width)) + 1
        left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        window = np.array([[left, top, left + side, top + side]], np.float32)
        if intersections(window, boxes).max(initial=0) <= FREE * side * side:
            return left, top, left + side, top + side
    return None
