"""Feature maps of the detectors on a backbone: one map (C4), feature pyramids, and their extra levels.

Letters: B images, C channels, H and W of the batch or of a map.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from detection.models.backbones import freeze_resnet, freeze_stages, stage_starts
from detection.models.heads import init_convs, init_normal
from detection.params.recipe import FasterRCNNRecipe, FCOSRecipe, RetinaNetRecipe


def c4_features(recipe: FasterRCNNRecipe, network: Any) -> nn.Module:
    """Features of stride 16: ResNet up to layer3, VGG16 up to conv5_3 (Ren et al. 2015, arXiv:1506.01497).

    Args:
        recipe: Its `trainable_layers` are five stages, counted from the top; ResNet's layer4 is one of them,
            though it is not used here.
        network: From `make_backbone`, with its weights loaded.

    Returns:
        Module from images to one feature map or a dict of it, with `out_channels`.
    """
    if recipe.backbone == "vgg16":
        freeze_stages(network.features, recipe.trainable_layers)
        body, channels = network.features[:-1], network.features[-3].out_channels
    else:
        freeze_resnet(network, recipe.trainable_layers)
        channels = network.layer4[0].conv1.in_channels
        body = IntermediateLayerGetter(network, {"layer3": "0"})
    features = nn.Sequential(OrderedDict(body=body))
    features.out_channels = channels
    return features


def fpn(
    recipe: FasterRCNNRecipe | RetinaNetRecipe | FCOSRecipe,
    network: Any,
    extra: ExtraFPNBlock | None = None,
    norm: type[nn.Module] | None = None,
) -> nn.Module:
    """Feature pyramid network on a backbone (Lin et al. 2016, arXiv:1612.03144).

    Args:
        recipe: Its `fpn_levels` are ResNet's levels l of stride 2^l, 2 to 5, or torchvision's numbers of
            MobileNet's stages, 1 to 5, where 4 and 5 both have stride 32.
        network: From `make_backbone`, with its weights loaded.
        extra: Block that adds the levels above; None: one pooled level.
        norm: Normalization in the pyramid; None: biases instead.

    Returns:
        Module from images to an ordered dict of feature maps, with `out_channels`.
    """
    levels = recipe.fpn_levels
    if recipe.backbone.startswith("mobilenet"):
        body = network.features
        freeze_stages(body, recipe.trainable_layers)
        starts = stage_starts(body)
        layers = [str(starts[level]) for level in levels]
        widths = [body[starts[level]].out_channels for level in levels]
    else:
        body = network
        freeze_resnet(network, recipe.trainable_layers)
        layers = [f"layer{level - 1}" for level in levels]
        widths = [network.fc.in_features // 2 ** (5 - level) for level in levels]
    names = {layer: str(i) for i, layer in enumerate(layers)}
    pyramid: nn.Module = BackboneWithFPN(body, names, widths, recipe.fpn_channels, extra, norm)
    return pyramid


class P6P7(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7, always in float32.

    On CPUs, torch's bfloat16 convolutions return wrong weight gradients for a stride of 2 on a 1x1 map (torch
    2.15), which P7 has for images of 64 pixels. These two levels cost almost nothing.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """See torchvision's `ExtraFPNBlock`."""
        with torch.autocast(p[0].device.type, enabled=False):
            p, c = [*p[:-1], p[-1].float()], [*c[:-1], c[-1].float()]
            levels: tuple[list[Tensor], list[str]] = super().forward(p, c, names)
        return levels


class AlignedPyramid(nn.Module):
    """Feature pyramid whose levels are aligned at the corners, as in xytpai's RetinaNet.

    Maps of odd sides (33, 17, 9, 5 for 257 pixels) are upsampled by bilinear interpolation with aligned
    corners: n cells to 2n - 1. P3 and P4 are smoothed by a 3x3 convolution, P6 is a 3x3 convolution of stride
    2 on C5, and every level ends in a ReLU. Other sizes work, with slightly misaligned corners. Weights are
    initialized as in the heads, from N(0, 0.01^2).

    Args:
        widths: Channels of C3, C4 and C5.
        channels: C of every level.
    """

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths[:-1])
        self.p6 = nn.Conv2d(widths[-1], channels, 3, stride=2, padding=1)
        init_convs(self, init_normal)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Levels P3, P4, P5, P6, each Tensor[B, C, h, w], from C3, C4, C5."""
        c = list(features.values())
        upper = self.lateral[-1](c[-1])
        levels = [upper]
        for i in range(len(c) - 2, -1, -1):
            lateral = self.lateral[i](c[i])
            upper = lateral + F.interpolate(upper, lateral.shape[2:], mode="bilinear", align_corners=True)
            levels.insert(0, self.smooth[i](upper))
        levels.append(self.p6(c[-1]))
        return {str(i): F.relu(level) for i, level in enumerate(levels)}


def one_stage_pyramid(recipe: RetinaNetRecipe | FCOSRecipe, network: Any) -> nn.Module:
    """Backbone of a one-stage detector: a loaded ResNet with the recipe's pyramid."""
    channels, width = recipe.fpn_channels, network.fc.in_features
    top = "p5"
    if isinstance(recipe, RetinaNetRecipe):
        if recipe.pyramid == "aligned":
            freeze_resnet(network, recipe.trainable_layers)
            body = IntermediateLayerGetter(network, {"layer2": "0", "layer3": "1", "layer4": "2"})
            pyramid = AlignedPyramid([width // 4, width // 2, width], channels)
            return nn.Sequential(OrderedDict(body=body, fpn=pyramid))
        top = recipe.p6_from
    extra = P6P7(channels if top == "p5" else width, channels)
    extra.use_P5 = top == "p5"  # torchvision decides by the widths, which may be equal
    return fpn(recipe, network, extra)
