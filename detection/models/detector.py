"""The protocol of all detectors, the containers of their inputs and outputs, and what they share.

Letters: B images, A anchors, M padded ground-truth boxes of an image, S samples, N detections of an image.
Boxes are float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open. Labels count classes from 0 without a
background class.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets

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
    """A detector of any architecture.

    `forward` is `losses` in training mode and `detect` otherwise, so that wrappers such as DDP, which hook
    `forward`, work unchanged.
    """

    @abstractmethod
    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Training losses.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
            targets: Ground truth; images may have no objects.

        Returns:
            Named scalars whose sum is minimized.
        """

    @abstractmethod
    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """Detect objects.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
            sizes: Size of each image in the padded batch, and its original size.

        Returns:
            One `Detections` per image, in pixels of the original image and clipped to it.
        """

    @abstractmethod
    def core(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs without data-dependent control flow, for export and compilation.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
        """

    def forward(self, images: Tensor, extra: Any) -> Any:
        """`losses(images, targets)` in training mode, else `detect(images, sizes)`."""
        return self.losses(images, extra) if self.training else self.detect(images, extra)


class BackboneDetector(Detector):
    """A detector on a backbone's feature maps.

    Unlike torchvision's detectors it has no `transform`: the loader resizes and pads the images, which may
    stay uint8.

    Args:
        backbone: Module from a batch to a dict of feature maps, finest first.
        mean: Mean per RGB channel of pixels in 0..1.
        std: Standard deviation per RGB channel of pixels in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, finest first."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        features: dict[str, Tensor] = self.backbone((images - self.mean) / self.std)
        return list(features.values())


def pad_empty(targets: Targets) -> Targets:
    """Targets with M of at least 1, the box being padding, so that matches can index them."""
    if targets.mask.shape[1]:
        return targets
    batch, device = len(targets.mask), targets.mask.device
    return Targets(
        torch.zeros(batch, 1, 4, device=device),
        torch.zeros(batch, 1, dtype=torch.int64, device=device),
        torch.zeros(batch, 1, dtype=torch.bool, device=device),
        targets.sizes,
    )


def matched_boxes(targets: Targets, matches: Tensor, anchors: Tensor) -> Tensor:
    """Ground-truth box of each matched anchor, and the anchor itself where there is no match.

    The latter keeps the encoding finite everywhere, so that a mask can exclude those anchors from a loss.

    Args:
        targets: Ground truth with M of at least 1.
        matches: Tensor[B, A], from `detection.ops.matcher`.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].

    Returns:
        Tensor[B, A, 4].
    """
    boxes = targets.boxes.gather(1, matches.clamp(min=0)[..., None].expand(-1, -1, 4))
    return torch.where(matches[..., None] >= 0, boxes, anchors)


def matched_labels(targets: Targets, matches: Tensor) -> Tensor:
    """Tensor[B, A]: class of each matched anchor's object; arbitrary for the other anchors."""
    return targets.labels.gather(1, matches.clamp(min=0))


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
