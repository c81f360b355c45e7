"""Convolutional heads, shared by all levels of a feature pyramid, and confusion matrices of training.

Parameters have torchvision's names.

Letters: B images, C channels, A anchors of all levels, K classes, H and W of a map.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from detection import distributed

init_normal = partial(nn.init.normal_, std=0.01)
CLASS_PRIOR = 0.01  # initial probability of every class (Lin et al. 2017, arXiv:1708.02002, section 3.3)


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu and He 2018, arXiv:1803.08494) that keeps bfloat16 under a GPU's autocast.

    torch runs it and the following ReLU in float32 there, with three times the memory traffic, although the kernel
    accumulates bfloat16 inputs in float32. On the CPU, identical to `nn.GroupNorm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize Tensor[B, C, H, W]; the result has its dtype."""
        if input.device.type != "cuda" or input.dtype != torch.bfloat16:
            return super().forward(input)
        with torch.autocast("cuda", enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return nn.functional.group_norm(input, self.num_groups, weight, bias, self.eps)


GROUP_NORM = partial(GroupNorm, 32)


def init_convs(module: nn.Module, init: Callable[[Tensor], object], bias: float = 0.0) -> None:
    """Initialize the weights of every convolution of a module, and its biases to a constant."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            init(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def output_conv(channels: int, outputs: int, bias: float = 0.0) -> nn.Conv2d:
    """3x3 output convolution with small random weights."""
    layer = nn.Conv2d(channels, outputs, 3, padding=1)
    init_convs(layer, init_normal, bias)
    return layer


def conv_tower(channels: int, depth: int, norm: Callable[[int], nn.Module] | None) -> nn.Sequential:
    """RetinaNet's tower: `depth` blocks of 3x3 convolution, normalization and ReLU."""
    tower = nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(depth)))
    init_convs(tower, init_normal)
    return tower


def flat_conv_tower(channels: int, depth: int) -> nn.Sequential:
    """FCOS's tower: 3x3 convolution, group normalization and ReLU, numbered in one sequence."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), GROUP_NORM(channels), nn.ReLU(inplace=True)]
    tower = nn.Sequential(*layers)
    init_convs(tower, init_normal)
    return tower


def flatten_cells(output: Tensor, columns: int) -> Tensor:
    """Tensor[B, anchors_per_cell * columns, H, W] to Tensor[B, H * W * anchors_per_cell, columns].

    The order is that of the anchors. In channels_last memory no data is moved.
    """
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, columns)


def over_levels(levels: list[Tensor], layer: Callable[[Tensor], Tensor], columns: int) -> Tensor:
    """Tensor[B, A, columns]: the outputs of one layer on all levels."""
    return torch.cat([flatten_cells(layer(level), columns) for level in levels], dim=1)


class ClassificationHead(nn.Module):
    """K sigmoid logits per anchor, all of probability `CLASS_PRIOR` at first.

    Without the prior, the loss of the many background anchors would dominate the first steps.
    """

    def __init__(self, tower: nn.Module, channels: int, anchors_per_cell: int, classes: int) -> None:
        super().__init__()
        bias = -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR)
        self.conv, self.classes = tower, classes
        self.cls_logits = output_conv(channels, anchors_per_cell * classes, bias)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Tensor[B, A, K]."""
        return over_levels(levels, lambda level: self.cls_logits(self.conv(level)), self.classes)


class RegressionHead(nn.Module):
    """Four deltas per anchor."""

    def __init__(self, tower: nn.Module, channels: int, anchors_per_cell: int) -> None:
        super().__init__()
        self.conv, self.bbox_reg = tower, output_conv(channels, anchors_per_cell * 4)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Tensor[B, A, 4]."""
        return over_levels(levels, lambda level: self.bbox_reg(self.conv(level)), 4)


class DetectionHead(nn.Module):
    """A classification and a regression head on the same feature maps."""

    def __init__(self, classification_head: nn.Module, regression_head: nn.Module) -> None:
        super().__init__()
        self.classification_head, self.regression_head = classification_head, regression_head

    def forward(self, levels: list[Tensor]) -> tuple[Any, Any]:
        """Outputs of both heads."""
        return self.classification_head(levels), self.regression_head(levels)


class ConfusionMeter(nn.Module):
    """Confusion matrix of the sampled anchors or proposals since the last reset; class 0 is the background.

    The counts stay on the device, so that counting never synchronizes. They are not in the state dict.

    Args:
        name: Name of the head: `rpn`, `roi`.
        classes: K, background included.
    """

    counts: Tensor

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("counts", torch.zeros(classes, classes, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def add(self, actual: Tensor, predicted: Tensor, mask: Tensor) -> None:
        """Count samples.

        Args:
            actual: int64 in 0..K-1, true class of each sample; any shape.
            predicted: int64 in 0..K-1, predicted class; the same shape.
            mask: bool, samples that count; the same shape.
        """
        cell = actual * len(self.counts) + predicted
        self.counts.view(-1).scatter_add_(0, cell.flatten(), mask.flatten().long())

    def total(self) -> Tensor:
        """Tensor[K, K], int64, on the CPU, summed over the ranks; one row per true class."""
        return torch.stack(distributed.gather(self.counts.cpu())).sum(0)

    def reset(self, total: Tensor | None = None) -> None:
        """Start at 0, or resume from the `total` of an earlier process."""
        self.counts.zero_()
        if total is not None and distributed.is_main():  # the counts of the ranks add up to it
            self.counts.copy_(total)


def meters(detector: nn.Module) -> dict[str, ConfusionMeter]:
    """Meters of a detector by name; one-stage detectors have none."""
    return {part.name: part for part in detector.modules() if isinstance(part, ConfusionMeter)}


def rates(counts: Tensor) -> dict[str, float]:
    """Micro-averaged classification rates.

    Args:
        counts: Tensor[K, K], from `ConfusionMeter.total`.

    Returns:
        `accuracy`: fraction of samples classified correctly. `recall`: TP / (TP + FN) over objects.
        `precision`: TP / (TP + FP) over foreground predictions. NaN where the denominator is 0.
    """
    correct = counts.diagonal().double()
    fractions = {
        "accuracy": (correct.sum(), counts.sum()),
        "recall": (correct[1:].sum(), counts[1:].sum()),
        "precision": (correct[1:].sum(), counts[:, 1:].sum()),
    }
    return {name: float(part / whole) for name, (part, whole) in fractions.items()}
