"""What the detectors share that borrow torchvision's modules.

Their parameters stand under torchvision's own names, so that state dicts go both ways.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detection.models.protocol import Detections, Detector, Sizes, Targets


class TorchvisionDetector(Detector):
    """Adopts the modules of one of torchvision's detectors and feeds them batches of our making.

    torchvision's `transform` is left out: pictures arrive resized and padded by the loader, as uint8.

    Args:
        net: torchvision's detector.
        mean: Per RGB channel, of pixels in 0..1.
        std: Per RGB channel, of pixels in 0..1.
    """

    mean: Tensor
    std: Tensor
    backbone: nn.Module

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        for name, child in net.named_children():
            if name != "transform":
                self.add_module(name, child)
        self.borrowed: tuple[Any] = (net,)  # in a tuple, so that it is no submodule and adds no names
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Tensor[B, 3, H, W] of uint8 in 0..255 or float in 0..1 to normalised float32."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self.mean) / self.std

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images, finest first."""
        maps: dict[str, Tensor] = self.backbone(self.normalise(images))
        return list(maps.values())


def split_targets(targets: Targets, first_label: int) -> list[dict[str, Tensor]]:
    """Padded targets to torchvision's list of dictionaries; classes are counted from `first_label`."""
    return [
        {"boxes": boxes[mask], "labels": labels[mask] + first_label}
        for boxes, labels, mask in zip(targets.boxes, targets.labels, targets.mask, strict=True)
    ]


def image_list(images: Tensor, sizes: Tensor) -> ImageList:
    """The view that torchvision has of a padded batch; `sizes` is Tensor[B, 2] of height and width."""
    return ImageList(images, [(int(h), int(w)) for h, w in sizes.tolist()])


def to_original(found: list[dict[str, Tensor]], sizes: Sizes, first_label: int) -> list[Detections]:
    """Detections in pixels of the batch to detections in pixels of the original pictures."""
    detections = []
    for one, inside, original in zip(found, sizes.inside, sizes.original, strict=True):
        scale = (original.float() / inside.float()).to(one["boxes"].device).flip(0).repeat(2)  # x, y, x, y
        limit = original.to(one["boxes"].device).flip(0).repeat(2).float()
        boxes = torch.minimum((one["boxes"].float() * scale).clamp(min=0), limit)
        detections.append(Detections(boxes, one["scores"].float(), one["labels"] - first_label))
    return detections
