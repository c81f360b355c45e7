"""The protocol of all detectors, the containers of their inputs and outputs, and what they share.

Letters: B images, A anchors, M padded ground-truth boxes of an image, S samples, N detections of an image. Boxes are
float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open. Labels count classes from 0 without a background class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets
from detection.params.recipe import Recipe

__all__ = ["Detections", "Detector", "ImageSizes", "Targets"]


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections on one image, by descending score."""

    boxes: Tensor
    """Tensor[N, 4], float32, in pixels of the original image."""
    scores: Tensor
    """Tensor[N], float32 in 0..1, descending."""
    labels: Tensor
    """Tensor[N], int64, classes from 0."""


class Detector(nn.Module, ABC):
    """A detector of any architecture, on a batch of RGB images Tensor[B, 3, H, W].

    Images are uint8 in 0..255 or float in 0..1. `forward` is `losses` in training mode and `detect` otherwise
    for wrappers such as DDP, which hook `forward`.
    """

    @abstractmethod
    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Training losses: named scalars whose sum is minimized. Images may have no objects."""

    @abstractmethod
    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """Detections of each image, in pixels of the original image and clipped to it."""

    @abstractmethod
    def core(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs without data-dependent control flow, for export and compilation."""

    def forward(self, images: Tensor, extra: Any) -> Any:
        """`losses(images, targets)` in training mode, else `detect(images, sizes)`."""
        return self.losses(images, extra) if self.training else self.detect(images, extra)


class BackboneDetector(Detector):
    """A detector on a backbone's feature maps.

    Unlike torchvision's detectors it has no `transform`: the loader resizes and pads the images.

    Args:
        recipe: Recipe of the detector; its mean and standard deviation normalize the images.
        backbone: Module from a batch to a feature map or a dict of feature maps, finest first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Recipe, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(recipe.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(recipe.image_std).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of a batch, finest first."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        features: Tensor | dict[str, Tensor] = self.backbone((images - self.mean) / self.std)
        return [features] if isinstance(features, Tensor) else list(features.values())

    @abstractmethod
    def raw_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Outputs of the heads on feature maps, A anchors per image, before decoding."""

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`."""
        return self.raw_outputs(self.features(images))


def by_size(
    detect: Callable[[Tensor, ImageSizes], list[Detections]], images: Tensor, sizes: ImageSizes
) -> list[Detections]:
    """Detect on images without their padding, those of one size at a time.

    Detections on an image do not depend on the others in its batch: through the padding, biases of the
    convolutions would spread into the image. Recipes with `anchors.strides` were published without padding.

    Args:
        detect: Detects on a batch of images of one size.
        images: Tensor[B, 3, H, W], padded on the right and bottom.
        sizes: Sizes of the images, on the CPU.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.resized.tolist()):
        rows.setdefault((height, width), []).append(row)
    if list(rows) == [images.shape[2:]]:
        return detect(images, sizes)
    detections: dict[int, Detections] = {}
    for (height, width), part in rows.items():
        alike = ImageSizes(sizes.resized[part], sizes.original[part])
        detections.update(zip(part, detect(images[part, :, :height, :width], alike), strict=True))
    return [detections[row] for row in range(len(images))]


def pad_empty(targets: Targets) -> Targets:
    """Targets with M of at least 1, padded if needed, so that matches can index them."""
    if targets.mask.shape[1]:
        return targets
    boxes, labels, mask = F.pad(targets.boxes, (0, 0, 0, 1)), F.pad(targets.labels, (0, 1)), targets.mask
    return Targets(boxes, labels, F.pad(mask, (0, 1)), targets.sizes)


def matched_targets(targets: Targets, matches: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Box Tensor[B, A, 4] and class Tensor[B, A] of each anchor's matched object.

    An anchor without a match has its own box, so that its encoding is finite and a mask can exclude it from a
    loss, and an arbitrary class.

    Args:
        targets: Ground truth with M of at least 1.
        matches: Tensor[B, A], from `detection.ops.matcher`.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].
    """
    index = matches.clamp(min=0)
    boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return torch.where(matches[..., None] >= 0, boxes, anchors), targets.labels.gather(1, index)


def mean_box_loss(loss: Tensor, positive: Tensor, valid: Tensor, normalizer: str) -> Tensor:
    """Box loss of a balanced sample as a scalar.

    Args:
        loss: Tensor[B, S], 0 where `positive` is false.
        positive: Tensor[B, S], bool.
        valid: Tensor[B, S], bool.
        normalizer: `sampled`: sum over the batch divided by its number of samples; `positives`: each image's
            sum divided by its number of positives, averaged over the images.
    """
    if normalizer == "positives":
        return (loss.sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()
    return loss.sum() / distributed.normalizer(valid.sum())
