"""Towers: a few convolutions and an output, shared by all levels of a pyramid.

Letters: B pictures in a batch, A anchors of all levels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from detection.models.detector import flatten_places

GROUPS = 32  # of group normalisation (Wu and He 2018, arXiv:1803.08494)
PRIOR = 0.01  # what a young network takes every class's probability to be (Lin et al. 2017, section 3.3)


def init_normal(module: nn.Module, std: float = 0.01) -> None:
    """Normal weights around 0 and no biases, for every convolution in a module."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def output(channels: int, columns: int, bias: float = 0.0) -> nn.Conv2d:
    """The 3x3 convolution at a tower's end, with small weights."""
    layer = nn.Conv2d(channels, columns, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
    return layer


def class_output(channels: int, columns: int) -> nn.Conv2d:
    """A tower's end for sigmoid classes: without it the first loss of all the background would be huge."""
    return output(channels, columns, -math.log((1 - PRIOR) / PRIOR))


def blocks(channels: int, depth: int, norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    """RetinaNet's tower: `depth` blocks of 3x3 convolution, normalisation and ReLU."""
    layers = [Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(depth)]
    tower = nn.Sequential(*layers)
    init_normal(tower)
    return tower


def group_norm(channels: int) -> nn.Module:
    """Group normalisation as RetinaNet v2 and FCOS have it."""
    return nn.GroupNorm(GROUPS, channels)


def over_levels(levels: list[Tensor], tower: nn.Module, last: nn.Module, columns: int) -> Tensor:
    """One tower and output over all levels: Tensor[B, A, columns]."""
    return torch.cat([flatten_places(last(tower(level)), columns) for level in levels], dim=1)


class Head(nn.Module):
    """A tower for classes and one for boxes, under torchvision's names."""

    def __init__(self, classification_head: nn.Module, regression_head: nn.Module) -> None:
        super().__init__()
        self.classification_head, self.regression_head = classification_head, regression_head

    def forward(self, levels: list[Tensor]) -> tuple[Any, Any]:
        """What each of them answers."""
        return self.classification_head(levels), self.regression_head(levels)
