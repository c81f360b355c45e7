"""Backbones: made here, pretrained by the `pretrain` stage, loaded strictly, handed to a detector.

A backbone is a torchvision classification network; its features are everything under its classifier. The
weights file holds the features' state dict alone, under the network's own names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from detection.errors import CheckpointError

CLASSIFIERS = ("fc.", "classifier.")  # ResNet's, and everybody else's
VGG_FC = ("classifier.0.", "classifier.3.")  # fc6 and fc7, which two-stage detectors go on with


class FixedStatistics(nn.modules.batchnorm._NormBase):
    """BatchNorm that trains its weights and keeps its pretrained statistics.

    It is no `BatchNorm2d`: who looks for live statistics, as several GPUs do to join them, must pass it by.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise Tensor[B, C, H, W] by the running statistics, in training too."""
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class WideDepthwise(nn.Conv2d):
    """A depthwise convolution that CPUs compute in float32, whatever autocast says.

    With a stride or a kernel larger than 3 its backward pass in bfloat16 is several times as slow there:
    those layers took half of SSDlite's step (AVX512-BF16).
    """

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of Tensor[B, C, H, W], in autocast's dtype as any other's."""
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))


def widen_depthwise(network: nn.Module) -> None:
    """Make `WideDepthwise` of those depthwise convolutions of a network that are slow otherwise."""
    for layer in network.modules():
        if (
            isinstance(layer, nn.Conv2d)
            and layer.groups == layer.in_channels > 1
            and (layer.stride[0] > 1 or layer.kernel_size[0] > 3)
        ):
            layer.__class__ = WideDepthwise


def make_backbone(name: str, bn: str = "live", classes: int = 1000, **options: Any) -> nn.Module:
    """Make a classification network with random weights.

    Args:
        name: `resnet18`, `mobilenet_v3_large`, `vgg16`, …: a name of torchvision's models.
        bn: BatchNorm layers: `live`, `frozen` or `frozen_stats`, as in the recipe.
        classes: Outputs of its classifier.
        options: Passed on to torchvision.
    """
    if bn != "live":
        options["norm_layer"] = FixedStatistics if bn == "frozen_stats" else FrozenBatchNorm2d
    elif name.startswith("resnet"):
        # Residual blocks begin as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1): without it
        # a ResNet-50's first hundred steps are lost on outputs that grow from block to block.
        options.setdefault("zero_init_residual", True)
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    widen_depthwise(network)
    return network


def is_feature(key: str, network: str) -> bool:
    """Whether a published tensor is kept: all but the classifier, whose fc6 and fc7 VGG16 keeps."""
    return not key.startswith(CLASSIFIERS) or (network == "vgg16" and key.startswith(VGG_FC))


def feature_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network's features: all of it but the classifier."""
    return {k: v for k, v in network.state_dict().items() if not k.startswith(CLASSIFIERS)}


def load_features(network: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Load features strictly: every parameter and buffer of them, and nothing else.

    Frozen BatchNorm has no batch counter; that one difference is allowed for. VGG16's fc6 and fc7 may be
    there or not.

    Returns:
        How many tensors were loaded.

    Raises:
        CheckpointError: Naming the first difference in each direction.
    """
    own = feature_state(network)
    if any(key.startswith(VGG_FC) for key in state):
        own |= {k: v for k, v in network.state_dict().items() if k.startswith(VGG_FC)}
    given = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}
    if difference := first_difference(own, given):
        raise CheckpointError(f"the backbone's weights do not fit: {difference}")
    network.load_state_dict({**network.state_dict(), **given}, strict=True)
    return len(given)


def first_difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """How a file's weights differ from a network's, in each direction; empty where they fit."""
    missing = sorted(own.keys() - given.keys())
    unknown = sorted(given.keys() - own.keys())
    if missing or unknown:
        parts = [f"lacks {missing[0]!r}"] if missing else []
        parts += [f"has {unknown[0]!r}, which the network has not"] if unknown else []
        return "the file " + " and ".join(parts)
    for key, value in own.items():
        if value.shape != given[key].shape:
            shapes = f"{tuple(given[key].shape)} in the file, {tuple(value.shape)} in the network"
            return f"{key!r} is {shapes}"
    return ""


def read_weights(path: str | Path, backbone: str) -> dict[str, Tensor] | None:
    """Read what `pretrain` left: the features' state dict, or None where the method was `none`.

    Raises:
        CheckpointError: The file is of another backbone, or not such a file.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is not there; run the pretrain stage first: dvc repro pretrain"
        ) from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from None
    if not isinstance(saved, dict) or "backbone" not in saved:
        raise CheckpointError(f"{path} is not a backbone's weights file; run dvc repro pretrain")
    if saved["backbone"] != backbone:
        raise CheckpointError(f"{path} holds a {saved['backbone']}, the recipe wants a {backbone}")
    state: dict[str, Tensor] | None = saved["state_dict"]
    return state


def freeze_resnet(network: nn.Module, trainable_layers: int) -> None:
    """Freeze all but the last `trainable_layers` of conv1, layer1, …, layer4; 5 trains all of them."""
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    trained = (*stages, "bn1") if trainable_layers >= 5 else tuple(stages)
    for name, parameter in network.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad_(False)


def c4_features(network: Any, name: str, trainable_layers: int) -> nn.Module:
    """The features of stride 16: ResNet's up to layer3, VGG16's up to conv5_3 (Ren et al. 1506.01497).

    Args:
        network: From `make_backbone`, its weights already loaded.
        name: Its name.
        trainable_layers: Stages that are trained, counted from the top: 5 of ResNet (its layer4 is the first
            of them, though it is not here), 5 of VGG16 (conv5, …, conv1).

    Returns:
        A module from images to a dict of one feature map, with `out_channels`.
    """
    if name == "vgg16":
        ends = [i for i, layer in enumerate(network.features) if isinstance(layer, nn.MaxPool2d)]
        frozen = 5 - trainable_layers
        for layer in network.features[: ends[frozen - 1] if frozen else 0]:
            layer.requires_grad_(False)
        return OneMap(network.features[: ends[-1]], 512)
    freeze_resnet(network, trainable_layers)
    width = network.layer4[0].conv1.in_channels
    return OneMap(IntermediateLayerGetter(network, {"layer3": "0"}), width)


class OneMap(nn.Module):
    """A body in the place of a feature pyramid: its one map is named as a pyramid's first is."""

    def __init__(self, body: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`{"0": Tensor[B, C, H / 16, W / 16]}` of Tensor[B, 3, H, W]."""
        answer: Tensor | dict[str, Tensor] = self.body(images)
        return answer if isinstance(answer, dict) else {"0": answer}


def fpn(
    network: nn.Module,
    name: str,
    trainable_layers: int,
    levels: tuple[int, ...],
    channels: int,
    extra: ExtraFPNBlock | None,
    norm: type[nn.Module] | None = None,
) -> nn.Module:
    """A feature pyramid over a backbone (Lin et al. 2016, arXiv:1612.03144).

    Args:
        network: From `make_backbone`, its weights already loaded.
        name: Its name.
        trainable_layers: Stages that are trained, counted from the top.
        levels: ResNet: levels l of stride 2^l, 2 to 5. MobileNet: torchvision's counting of its stages, 1 to
            5, where 4 and 5 both have stride 32.
        channels: Of every level of the pyramid.
        extra: What makes the levels above; None: a pooled one.
        norm: Normalisation in the pyramid; None: biases instead.

    Returns:
        A module from images to an ordered dict of feature maps, with `out_channels`.
    """
    layers, widths = (
        _mobilenet_levels(network, trainable_layers, levels)
        if name.startswith("mobilenet")
        else _resnet_levels(network, trainable_layers, levels)
    )
    body = network.features if name.startswith("mobilenet") else network
    pyramid: nn.Module = BackboneWithFPN(body, layers, widths, channels, extra, norm)
    return pyramid


def _resnet_levels(
    network: Any, trainable_layers: int, levels: tuple[int, ...]
) -> tuple[dict[str, str], list[int]]:
    """Names of the layers a pyramid stands on, and their widths; freezes the others."""
    freeze_resnet(network, trainable_layers)
    widths = [network.fc.in_features // 2 ** (5 - level) for level in levels]
    return {f"layer{level - 1}": str(i) for i, level in enumerate(levels)}, widths


def _mobilenet_levels(
    network: Any, trainable_layers: int, levels: tuple[int, ...]
) -> tuple[dict[str, str], list[int]]:
    """The same for MobileNet, whose stages start at the first block, each strided one, and the last."""
    blocks = network.features
    strided = [i for i, block in enumerate(blocks) if getattr(block, "_is_cn", False)]
    starts = [0, *strided, len(blocks) - 1]
    for block in blocks[: starts[len(starts) - trainable_layers] if trainable_layers else len(blocks)]:
        block.requires_grad_(False)
    layers = {str(starts[level]): str(i) for i, level in enumerate(levels)}
    return layers, [blocks[starts[level]].out_channels for level in levels]
