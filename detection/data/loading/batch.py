"""Batches of images with padded ground truth.

Letters: B images in a batch, M maximum number of objects per image in it.
Boxes are float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open. Labels are class indices from 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.data.loading.batch_transfer import batch_memory
from detection.data.loading.geometry import fill_value
from detection.params.recipe import Recipe, SSDRecipe

STRIDE = 32
"""Batches are padded to multiples of the stride of the coarsest backbone level."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Ground truth of a batch, padded to the image with most objects."""

    boxes: Tensor
    """Tensor[B, M, 4], float32, in pixels of the batch."""
    labels: Tensor
    """Tensor[B, M], int64; 0 where `mask` is false."""
    mask: Tensor
    """Tensor[B, M], bool: true for objects, false for padding."""
    sizes: Tensor
    """Tensor[B, 2], int64: height and width of each resized image before padding."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Targets":
        """Apply a function to each tensor."""
        return Targets(function(self.boxes), function(self.labels), function(self.mask), function(self.sizes))

    def to(self, device: torch.device) -> "Targets":
        """Copy to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, part: slice) -> "Targets":
        """Targets of a slice of the images."""
        return self.map(lambda tensor: tensor[part])


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Sizes of the images of a batch."""

    resized: Tensor
    """Tensor[B, 2], int64: height and width of each resized image before padding."""
    original: Tensor
    """Tensor[B, 2], int64: height and width of each image file."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images padded to one size, with their ground truth."""

    images: Tensor
    """Tensor[B, 3, H, W], RGB: uint8, or float32 with white at 1 if the augmentation makes floats."""
    targets: Targets
    """Ground truth in pixels of the batch."""
    sizes: ImageSizes
    """Sizes of the images before padding and in their files."""
    rows: list[int]
    """Row of each image in the index."""

    def pin_memory(self) -> "Batch":
        """Copy to pinned memory, so that copies to a GPU do not block.

        `DataLoader` calls this method by name and silently skips objects without it.
        """
        sizes = ImageSizes(self.sizes.resized.pin_memory(), self.sizes.original.pin_memory())
        return Batch(self.images.pin_memory(), self.targets.map(Tensor.pin_memory), sizes, self.rows)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, ready for a batch."""

    image: Tensor
    """Tensor[3, h, w], RGB, uint8 or float32."""
    boxes: NDArray[np.float32]
    """[M, 4] in pixels of `image`."""
    labels: NDArray[np.int64]
    """[M]."""
    original: tuple[int, int]
    """Height and width of the image file."""
    row: int
    """Row of the image in the index."""


def fill_color(recipe: Recipe) -> tuple[int, int, int]:
    """RGB of the padding: the mean, which becomes 0 when the detector normalizes the image."""
    red, green, blue = recipe.image_mean
    return round(255 * red), round(255 * green), round(255 * blue)


def pads_to_stride(recipe: Recipe) -> bool:
    """Return whether the sides of a batch must be multiples of `STRIDE`.

    Required if anchor strides are derived from the sides: 100 pixels over 13 cells give 7 instead of 8. With
    `anchors.strides` a batch has the size of its largest images, as in the code that these recipes follow.
    """
    anchors = getattr(recipe, "anchors", None)
    return not isinstance(recipe, SSDRecipe) and (anchors is None or anchors.strides is None)


def padded_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """Height and width of a batch, from the greatest height and width of its resized images."""
    (height, width), step = size, STRIDE if pads_to_stride(recipe) else 1
    return -(-height // step) * step, -(-width // step) * step


def collate(samples: list[Sample], recipe: Recipe, channels_last: bool = False) -> Batch:
    """Make a batch: pad images with `fill_color` on the right and bottom, and boxes with zeros.

    Args:
        samples: The images.
        recipe: Recipe, for padding and its color.
        channels_last: Memory format of the images, if that is the samples' too: then no bytes are reordered.
    """
    resized = torch.tensor([sample.image.shape[1:] for sample in samples])
    height, width = padded_size((int(resized[:, 0].max()), int(resized[:, 1].max())), recipe)
    channels_last = channels_last and samples[0].image.stride(0) == 1
    dtype = samples[0].image.dtype
    images = batch_memory((len(samples), 3, height, width), dtype, channels_last).to(samples[0].image.device)
    fill = fill_value(fill_color(recipe), dtype)
    for canvas, sample in zip(images, samples, strict=True):
        h, w = sample.image.shape[1:]
        canvas[:, :h, :w] = sample.image
        canvas[:, h:] = fill
        canvas[:, :h, w:] = fill
    counts = torch.tensor([len(sample.boxes) for sample in samples])
    mask = torch.arange(int(counts.max())) < counts[:, None]
    boxes = torch.zeros(*mask.shape, 4)
    labels = torch.zeros(mask.shape, dtype=torch.int64)
    boxes[mask] = torch.from_numpy(np.concatenate([sample.boxes for sample in samples]))
    labels[mask] = torch.from_numpy(np.concatenate([sample.labels for sample in samples]))
    sizes = ImageSizes(resized, torch.tensor([sample.original for sample in samples]))
    return Batch(images, Targets(boxes, labels, mask, resized), sizes, [sample.row for sample in samples])
