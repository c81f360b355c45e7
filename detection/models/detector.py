"""What every detector can do, and the containers that go in and come out.

Letters: B pictures in a batch, N detections of one picture.
Boxes are float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open. Labels count classes from 0: no label
means background.

What our detectors share: normalisation of pictures, and the padded ground truth they work on.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detection.data.loading.batch import ImageSizes, Targets
from detection.ops.anchors import Size

__all__ = ["Detections", "Detector", "ImageSizes", "Targets"]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found on one picture, best first."""

    boxes: Tensor
    """Tensor[N, 4], float32, in pixels of the original picture."""
    scores: Tensor
    """Tensor[N], float32 in 0..1, falling."""
    labels: Tensor
    """Tensor[N], int64, classes from 0."""


class Detector(nn.Module, ABC):
    """A detector of some architecture.

    `forward` is `losses` in training mode and `detect` otherwise, so that wrappers such as DDP, which hook
    `forward`, work unchanged.
    """

    @abstractmethod
    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Training losses.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
            targets: The ground truth; pictures without objects are fine.

        Returns:
            Named scalars whose sum is to be minimised.
        """

    @abstractmethod
    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """Find objects.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
            sizes: What part of the batch each picture fills, and its original size.

        Returns:
            One `Detections` a picture, boxes in pixels of the original pictures and inside them.
        """

    @abstractmethod
    def core(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs, without any branching on data: what is exported and compiled.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
        """

    def forward(self, images: Tensor, extra: Any) -> Any:
        """`losses(images, targets)` in training mode, else `detect(images, sizes)`."""
        return self.losses(images, extra) if self.training else self.detect(images, extra)


class BackboneDetector(Detector):
    """A detector over a backbone's feature maps.

    torchvision's resizing `transform` has no place here: pictures arrive resized and padded by the loader, as
    uint8 if need be.

    Args:
        backbone: From a batch to a dict of feature maps, finest first.
        mean: Per RGB channel, of pixels in 0..1.
        std: Per RGB channel, of pixels in 0..1.
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
        maps: dict[str, Tensor] = self.backbone((images - self.mean) / self.std)
        return list(maps.values())


def map_sizes(features: list[Tensor]) -> list[Size]:
    """Height and width of feature maps Tensor[B, C, H, W]."""
    return [(level.shape[2], level.shape[3]) for level in features]


def flatten_places(output: Tensor, columns: int) -> Tensor:
    """A convolution's answer Tensor[B, per_place * columns, H, W] to Tensor[B, H * W * per_place, columns].

    The order is that of anchors. In channels_last memory this moves nothing.
    """
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, columns)


def pad_empty(targets: Targets) -> Targets:
    """The same with M at least 1: a row that the mask leaves out, so that it can be indexed."""
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
    """The object's box for each matched anchor; an anchor without a match stands for itself.

    That keeps encoding finite everywhere, so that a mask can leave those out of a loss.

    Args:
        targets: At least one row.
        matches: Tensor[B, A], from `detection.ops.matcher`.
        anchors: Tensor[A, 4].

    Returns:
        Tensor[B, A, 4].
    """
    picked = targets.boxes.gather(1, matches.clamp(min=0)[..., None].expand(-1, -1, 4))
    return torch.where(matches[..., None] >= 0, picked, anchors)


def matched_labels(targets: Targets, matches: Tensor) -> Tensor:
    """Tensor[B, A]: the object's class for each matched anchor; meaningless elsewhere."""
    return targets.labels.gather(1, matches.clamp(min=0))
