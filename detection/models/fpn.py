"""What stands between a ResNet and the towers of a one-stage detector.

Letters: B pictures in a batch, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detection.models.backbones import fpn, freeze_resnet
from detection.params.recipe import FCOSRecipe, RetinaNetRecipe


class P6P7(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7, always in float32.

    On the CPU torch's bfloat16 convolutions give wild weight gradients for a stride of 2 on a 1x1 map (torch
    2.15), which P7 has for pictures of 64 pixels. These two levels cost next to nothing.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """See torchvision's `ExtraFPNBlock`."""
        with torch.autocast(p[0].device.type, enabled=False):
            p, c = [*p[:-1], p[-1].float()], [*c[:-1], c[-1].float()]
            levels: tuple[list[Tensor], list[str]] = super().forward(p, c, names)
        return levels


class AlignedPyramid(nn.Module):
    """A pyramid whose levels share their corners, as in xytpai's RetinaNet.

    Maps of odd sides, 33, 17, 9, 5 for 257 pixels, are brought to one another by bilinear interpolation
    with aligned corners: n cells to 2n - 1. P3 and P4 are smoothed by a 3x3 convolution, P6 comes from C5 by
    one of stride 2, and every level ends in a ReLU. Other sizes work, with corners a little off.

    Args:
        widths: Channels of C3, C4 and C5.
        channels: C of every level.
    """

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths[:-1])
        self.p6 = nn.Conv2d(widths[-1], channels, 3, stride=2, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps C3, C4, C5 to levels P3, P4, P5, P6, each Tensor[B, C, h, w]."""
        c = list(maps.values())
        upper = self.lateral[-1](c[-1])
        levels = [upper]
        for i in range(len(c) - 2, -1, -1):
            lateral = self.lateral[i](c[i])
            upper = lateral + F.interpolate(upper, lateral.shape[2:], mode="bilinear", align_corners=True)
            levels.insert(0, self.smooth[i](upper))
        levels.append(self.p6(c[-1]))
        return {str(i): F.relu(level) for i, level in enumerate(levels)}


class AlignedBackbone(nn.Module):
    """A ResNet under an `AlignedPyramid`, its stages named as under torchvision's pyramid."""

    def __init__(self, network: Any, trainable_layers: int, channels: int) -> None:
        super().__init__()
        freeze_resnet(network, trainable_layers)
        width = network.fc.in_features
        self.body = IntermediateLayerGetter(network, {"layer2": "0", "layer3": "1", "layer4": "2"})
        self.fpn = AlignedPyramid([width // 4, width // 2, width], channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels of Tensor[B, 3, H, W], finest first."""
        levels: dict[str, Tensor] = self.fpn(self.body(images))
        return levels


def pyramid(recipe: RetinaNetRecipe | FCOSRecipe, network: Any) -> nn.Module:
    """The backbone of a one-stage detector: `network`, its weights loaded, under the recipe's pyramid."""
    channels, width = recipe.fpn_channels, network.fc.in_features
    top = "p5"
    if isinstance(recipe, RetinaNetRecipe):
        if recipe.pyramid == "aligned":
            return AlignedBackbone(network, recipe.trainable_layers, channels)
        top = recipe.p6_from
    extra = P6P7(channels if top == "p5" else width, channels)
    extra.use_P5 = top == "p5"  # torchvision tells by the widths, which may be equal
    return fpn(network, recipe.backbone, recipe.trainable_layers, recipe.fpn_levels, channels, extra)
