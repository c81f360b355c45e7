"""The feature maps under SSD and SSDlite; parameters are named as in torchvision."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from detection.models.heads import init_normal

Norm = Callable[..., nn.Module]


def xavier(module: nn.Module) -> None:
    """Xavier's uniform weights and no biases, for every convolution in a module."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class VGGMaps(nn.Module):
    """Six maps from VGG16 (Liu et al. 2015, arXiv:1512.02325, section 3), 38 to 1 cells wide for 300 pixels.

    conv4_3, its channels brought to a learnt length by L2 normalisation; fc6 and fc7 as convolutions, fc6
    dilated; and four more blocks.

    Args:
        network: torchvision's VGG16, its weights loaded.
        trainable_layers: How many of its five stages, from the top, are trained.
    """

    def __init__(self, network: Any, trainable_layers: int) -> None:
        super().__init__()
        layers = network.features
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        starts = [0, *pools[:-1]]
        for layer in layers[: starts[len(starts) - trainable_layers] if trainable_layers else len(layers)]:
            layer.requires_grad_(False)
        layers[pools[2]].ceil_mode = True  # 75 cells to 38, as published
        self.scale_weight = nn.Parameter(torch.full((512,), 20.0))
        self.features = nn.Sequential(*layers[: pools[3]])
        fc = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )
        more = [
            _block(1024, 512, 2, 1),
            _block(512, 256, 2, 1),
            _block(256, 256, 1, 0),
            _block(256, 256, 1, 0),
        ]
        for part in (fc, *more):
            xavier(part)
        self.extra = nn.ModuleList([nn.Sequential(*layers[pools[3] : -1], fc), *more])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of Tensor[B, 3, H, W], finest first."""
        x = self.features(images)
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return {str(i): level for i, level in enumerate(maps)}


def _block(channels: int, out: int, stride: int, padding: int) -> nn.Sequential:
    """A 1x1 convolution to half the new width and a 3x3 one."""
    return nn.Sequential(
        nn.Conv2d(channels, out // 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out // 2, out, 3, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    )


class MobileNetMaps(nn.Module):
    """Six maps from MobileNetV3 (Howard et al. 2019, arXiv:1905.02244, section 6.3), 20 to 1 cells wide.

    C4 is read in the middle of its block, where it is widest; C5 at the end; then four blocks of depthwise
    convolutions (Sandler et al. 2018, arXiv:1801.04381).

    Args:
        network: torchvision's MobileNetV3, its weights loaded.
        trainable_layers: How many of its six stages, from the top, are trained.
        norm: Normalisation of the blocks.
    """

    def __init__(self, network: Any, trainable_layers: int, norm: Norm) -> None:
        super().__init__()
        layers = network.features
        strided = [i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False)]
        starts = [0, *strided, len(layers) - 1]
        for layer in layers[: starts[len(starts) - trainable_layers] if trainable_layers else len(layers)]:
            layer.requires_grad_(False)
        c4 = starts[-2]
        self.features = nn.Sequential(
            nn.Sequential(*layers[:c4], layers[c4].block[0]),
            nn.Sequential(layers[c4].block[1:], *layers[c4 + 1 :]),
        )
        widths = [layers[-1].out_channels, 512, 256, 256, 128]
        self.extra = nn.ModuleList(_light_block(channels, out, norm) for channels, out in pairwise(widths))
        init_normal(self.extra, std=0.03)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of Tensor[B, 3, H, W], finest first."""
        maps, x = [], images
        for block in (*self.features, *self.extra):
            x = block(x)
            maps.append(x)
        return {str(i): level for i, level in enumerate(maps)}


def _light_block(channels: int, out: int, norm: Norm) -> nn.Sequential:
    """1x1 to half the new width, depthwise 3x3 of stride 2, 1x1."""
    half, options = out // 2, {"norm_layer": norm, "activation_layer": nn.ReLU6}
    return nn.Sequential(
        Conv2dNormActivation(channels, half, kernel_size=1, **options),
        Conv2dNormActivation(half, half, kernel_size=3, stride=2, groups=half, **options),
        Conv2dNormActivation(half, out, kernel_size=1, **options),
    )
