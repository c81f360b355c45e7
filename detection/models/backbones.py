"""Backbones: classification networks of torchvision, pretrained by the `pretrain` stage.

A detector uses a network's features: all of it but the classifier. The weights file holds the features' state
dict under torchvision's names; VGG16 also keeps fc6 and fc7.

Letters: B images, C channels, H and W of a map.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detection.errors import CheckpointError

CLASSIFIERS = ("fc.", "classifier.")  # prefixes of ResNet's and of all other networks' classifiers
BATCH_COUNTER = "num_batches_tracked"  # of BatchNorm; frozen BatchNorm and old files lack it
VGG_FC = ("classifier.0.", "classifier.3.")  # fc6 and fc7, which two-stage detectors reuse


class FrozenBatchNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision has no types
    """BatchNorm with frozen weights and frozen running statistics, which the convolution before it applies."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of a `NormalizedConv`, which is normalized."""
        return x


class FrozenStatsBatchNorm(nn.modules.batchnorm._NormBase):
    """BatchNorm with trainable weights and frozen running statistics, which the convolution before it applies.

    Not a `BatchNorm2d` subclass, so that the SyncBatchNorm conversion skips it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of a `NormalizedConv`, which is normalized."""
        return x


class NormalizedConv(nn.Conv2d):
    """Convolution that applies the BatchNorm of fixed statistics behind it, with scaled weights and a bias.

    BatchNorm by itself reads and writes all activations once more in each direction: 5 % of a RetinaNet step on a CPU.
    torchvision's also multiplies by float32 buffers, which turns the outputs of an autocast convolution into float32.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        norm = self.__dict__["norm"]  # no submodule: the state dict has it once, under torchvision's name
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        shift = shift if bias is None else shift + bias * scale
        result: Tensor = super()._conv_forward(input, weight * scale[:, None, None, None], shift)
        return result


class Float32DepthwiseConv(nn.Conv2d):
    """Depthwise convolution that runs in float32 on CPUs, autocast or not.

    With a stride or a kernel larger than 3, its backward pass in bfloat16 is several times slower there:
    those layers took half of SSDlite's step (AVX512-BF16).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve Tensor[B, C, H, W]; the result has autocast's dtype, as that of any other layer."""
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))


def use_float32_depthwise(network: nn.Module) -> None:
    """Turn the depthwise convolutions that are slow in bfloat16 into `Float32DepthwiseConv`."""
    for layer in network.modules():
        if (
            isinstance(layer, nn.Conv2d)
            and layer.groups == layer.in_channels > 1
            and (layer.stride[0] > 1 or layer.kernel_size[0] > 3)
        ):
            layer.__class__ = Float32DepthwiseConv


class NormalizedDepthwiseConv(Float32DepthwiseConv, NormalizedConv):
    """Depthwise convolution in float32 on CPUs that applies the BatchNorm of fixed statistics behind it."""


def fuse_fixed_norms(network: nn.Module) -> None:
    """Let convolutions apply the `FrozenBatchNorm` or `FrozenStatsBatchNorm` that follows them.

    Raises:
        TypeError: One follows another layer.
    """
    for parent in network.modules():
        layers = list(parent.children())
        for conv, norm in pairwise(layers):
            if isinstance(norm, FrozenBatchNorm | FrozenStatsBatchNorm):
                if not isinstance(conv, nn.Conv2d):
                    raise TypeError(f"no convolution before {norm}")
                depthwise = isinstance(conv, Float32DepthwiseConv)
                conv.__class__ = NormalizedDepthwiseConv if depthwise else NormalizedConv
                conv.__dict__["norm"] = norm


def make_backbone(name: str, bn: str = "live", classes: int = 1000, **options: Any) -> nn.Module:
    """Build a classification network with random weights.

    Args:
        name: `resnet18`, `mobilenet_v3_large`, `vgg16`, ...: name of a torchvision model.
        bn: BatchNorm layers: `live`, `frozen` or `frozen_stats`, as in the recipe.
        classes: Outputs of the classifier.
        options: Arguments of torchvision's builder.
    """
    if bn != "live":
        options["norm_layer"] = FrozenStatsBatchNorm if bn == "frozen_stats" else FrozenBatchNorm
    elif name.startswith("resnet"):
        # Residual blocks start as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1); otherwise
        # the outputs of a random ResNet-50 grow from block to block and its first hundred steps are wasted.
        options.setdefault("zero_init_residual", True)
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    use_float32_depthwise(network)
    fuse_fixed_norms(network)
    return network


def stage_starts(layers: nn.Sequential) -> list[int]:
    """Index of the first layer of each stage of VGG16's or MobileNetV3's `features`.

    VGG16's five stages start at the first layer and at each pooling but the last; MobileNet's six at the
    first block, at each strided one, and at the last.
    """
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    if pools:
        return [0, *pools[:-1]]
    strided = [i for i, block in enumerate(layers) if getattr(block, "_is_cn", False)]
    return [0, *strided, len(layers) - 1]


def freeze_stages(layers: nn.Sequential, trainable: int) -> None:
    """Freeze all but the last `trainable` stages of VGG16's or MobileNetV3's `features`."""
    starts = stage_starts(layers)
    for layer in layers[: starts[len(starts) - trainable] if trainable else len(layers)]:
        layer.requires_grad_(False)


def freeze_resnet(network: nn.Module, trainable: int) -> None:
    """Freeze all but the last `trainable` of conv1, layer1, ..., layer4; 5 trains all of them."""
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable]
    prefixes = (*stages, "bn1") if trainable >= 5 else tuple(stages)
    for name, parameter in network.named_parameters():
        if not name.startswith(prefixes):
            parameter.requires_grad_(False)


def is_feature(key: str, network: str) -> bool:
    """Return whether `pretrain` keeps a tensor: not of the classifier, but for VGG16's fc6 and fc7."""
    return not key.startswith(CLASSIFIERS) or (network == "vgg16" and key.startswith(VGG_FC))


def feature_state(network: nn.Module) -> dict[str, Tensor]:
    """State dict of a network's features, without the classifier."""
    return {k: v for k, v in network.state_dict().items() if not k.startswith(CLASSIFIERS)}


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict without BatchNorm's batch counters."""
    return {key: value for key, value in state.items() if not key.endswith(BATCH_COUNTER)}


def load_features(network: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Load features strictly: every parameter and buffer of them, and no others.

    Exceptions: BatchNorm's batch counter, which frozen BatchNorm lacks, and VGG16's fc6 and fc7, which are optional.

    Returns:
        Number of tensors loaded.

    Raises:
        CheckpointError: The tensors differ; names the first difference in each direction.
    """
    own = feature_state(network)
    if any(key.startswith(VGG_FC) for key in state):
        own |= {k: v for k, v in network.state_dict().items() if k.startswith(VGG_FC)}
    used = {k: v for k, v in state.items() if k in own or not k.endswith(BATCH_COUNTER)}
    if difference := first_difference(own, used):
        raise CheckpointError(f"the backbone's weights do not fit: {difference}")
    network.load_state_dict({**network.state_dict(), **used}, strict=True)
    return len(used)


def first_difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe the first difference between a file's weights and a network's; empty if they fit."""
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    if missing or unknown:
        parts = [f"lacks {missing[0]!r}"] if missing else []
        parts += [f"has {unknown[0]!r}, which the network does not have"] if unknown else []
        return "the file " + " and ".join(parts)
    for key, value in own.items():
        if value.shape != state[key].shape:
            shapes = f"{tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
            return f"{key!r} has shape {shapes}"
    return ""


def read_weights(path: str | Path, backbone: str) -> dict[str, Tensor] | None:
    """Read the output of `pretrain`: the features' state dict, or None for the method `none`.

    Raises:
        CheckpointError: The file is missing, is not a weights file, or holds another backbone.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; run the pretrain stage first: dvc repro pretrain") from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from None
    if not isinstance(saved, dict) or "backbone" not in saved:
        raise CheckpointError(f"{path} is not a backbone's weights file; run dvc repro pretrain")
    if saved["backbone"] != backbone:
        raise CheckpointError(f"{path} holds a {saved['backbone']}, the recipe needs a {backbone}")
    state: dict[str, Tensor] | None = saved["state_dict"]
    return state
