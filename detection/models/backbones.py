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
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.backbone_utils import _mobilenet_extractor as mobilenet_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from detection.errors import CheckpointError

CLASSIFIERS = ("fc.", "classifier.")  # ResNet's, and everybody else's


def make_backbone(name: str, freeze_bn: bool = False, classes: int = 1000, **options: Any) -> nn.Module:
    """Make a classification network with random weights.

    Args:
        name: `resnet18`, `mobilenet_v3_large`, `vgg16`, …: a name of torchvision's models.
        freeze_bn: Put constants in the place of BatchNorm layers.
        classes: Outputs of its classifier.
        options: Passed on to torchvision.
    """
    if freeze_bn:
        options["norm_layer"] = FrozenBatchNorm2d
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return network


def feature_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network's features: all of it but the classifier."""
    return {k: v for k, v in network.state_dict().items() if not k.startswith(CLASSIFIERS)}


def load_features(network: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Load features strictly: every parameter and buffer of them, and nothing else.

    Frozen BatchNorm has no batch counter; that one difference is allowed for.

    Returns:
        How many tensors were loaded.

    Raises:
        CheckpointError: Naming the first difference in each direction.
    """
    own = feature_state(network)
    given = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - given.keys())
    unknown = sorted(given.keys() - own.keys())
    if missing or unknown:
        parts = [f"lacks {missing[0]!r}"] if missing else []
        parts += [f"has {unknown[0]!r}, which the network has not"] if unknown else []
        raise CheckpointError("the backbone's weights do not fit: the file " + " and ".join(parts))
    for key, value in own.items():
        if value.shape != given[key].shape:
            shapes = f"{tuple(given[key].shape)} in the file, {tuple(value.shape)} in the network"
            raise CheckpointError(f"the backbone's weights do not fit: {key!r} is {shapes}")
    network.load_state_dict({**network.state_dict(), **given}, strict=True)
    return len(given)


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


def fpn(
    network: nn.Module,
    name: str,
    trainable_layers: int,
    levels: tuple[int, ...],
    channels: int,
    extra: ExtraFPNBlock | None,
) -> nn.Module:
    """A feature pyramid over a backbone (Lin et al. 2016, arXiv:1612.03144).

    Args:
        network: From `make_backbone`, its weights already loaded.
        name: Its name.
        trainable_layers: Stages that are trained, counted from the top.
        levels: ResNet: levels l of stride 2^l, 2 to 5. MobileNet: (4, 5).
        channels: Of every level of the pyramid.
        extra: What makes the levels above; None: a pooled one.

    Returns:
        A module from images to an ordered dict of feature maps, with `out_channels`.
    """
    if name.startswith("mobilenet"):
        pyramid: nn.Module = mobilenet_extractor(network, True, trainable_layers, extra_blocks=extra)
        return pyramid
    freeze_resnet(network, trainable_layers)
    classifier: Any = network.fc
    widths = [classifier.in_features // 2 ** (5 - level) for level in levels]
    layers = {f"layer{level - 1}": str(i) for i, level in enumerate(levels)}
    resnet_pyramid: nn.Module = BackboneWithFPN(network, layers, widths, channels, extra)
    return resnet_pyramid
