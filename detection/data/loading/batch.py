"""A batch of pictures, and the ground truth that goes with it.

Letters: B pictures in a batch, M most objects of one picture in it.
Boxes are float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open. Labels count classes from 0.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """Ground truth of a batch, padded to the picture with most objects."""

    boxes: Tensor
    """Tensor[B, M, 4], float32, in pixels of the batch."""
    labels: Tensor
    """Tensor[B, M], int64; 0 where `mask` is false."""
    mask: Tensor
    """Tensor[B, M], bool: which rows are objects."""
    sizes: Tensor
    """Tensor[B, 2], int64: height and width that each picture fills of the padded batch, from its corner."""

    def to(self, device: torch.device) -> "Targets":
        """The same on another device."""
        return Targets(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> "Targets":
        """See `Batch.pin_memory`."""
        return Targets(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    def __getitem__(self, part: slice) -> "Targets":
        """Some pictures of the batch."""
        return Targets(*(getattr(self, field.name)[part] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """How the pictures of a batch lie in it, and how large they were."""

    inside: Tensor
    """Tensor[B, 2], int64: height and width that each picture fills of the padded batch."""
    original: Tensor
    """Tensor[B, 2], int64: height and width of each picture's file."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one size with their ground truth."""

    images: Tensor
    """Tensor[B, 3, H, W], uint8, RGB."""
    targets: Targets
    """Ground truth in pixels of the batch."""
    sizes: ImageSizes
    """Inside the batch, and of the files."""
    rows: list[int]
    """Which pictures of the index these are."""

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU fetches from by itself, so that a copy without blocking is one.

        torch's loader calls it by this name; what has no such method it leaves as it is, without a word.
        """
        sizes = ImageSizes(self.sizes.inside.pin_memory(), self.sizes.original.pin_memory())
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), sizes, self.rows)
