"""What our detectors share: normalisation of pictures, and the padded ground truth they work on."""

import torch
from torch import Tensor, nn

from detection.anchors import Size
from detection.models.protocol import Detector, Targets


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


def with_a_row(targets: Targets) -> Targets:
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
        matches: Tensor[B, A], from `detection.matching`.
        anchors: Tensor[A, 4].

    Returns:
        Tensor[B, A, 4].
    """
    picked = targets.boxes.gather(1, matches.clamp(min=0)[..., None].expand(-1, -1, 4))
    return torch.where(matches[..., None] >= 0, picked, anchors)


def matched_labels(targets: Targets, matches: Tensor) -> Tensor:
    """Tensor[B, A]: the object's class for each matched anchor; meaningless elsewhere."""
    return targets.labels.gather(1, matches.clamp(min=0))
