"""Weights of a backbone from a file that the user names, in torchvision's layout."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from detection.errors import CheckpointError
from detection.models.backbones import (
    BATCH_COUNTER,
    CLASSIFIERS,
    VGG_FC,
    feature_state,
    first_difference,
    make_backbone,
    without_counters,
)
from detection.params.recipe_base import Backbone
from detection.weights import read_state_dict

log = logging.getLogger(__name__)


def read_backbone(path: Path, backbone: str) -> dict[str, Tensor]:
    """Read the features of a classification network, strictly: all of them in the right shapes, and no others.

    Args:
        path: State dict with torchvision's names, with or without the classifier; `models/backbone.pt` is one.
        backbone: Name of the network.

    Returns:
        State dict of the features; VGG16: with fc6 and fc7 if the file has them.

    Raises:
        CheckpointError: Not a weights file, or of another network; names the first difference in each direction.
    """
    state = read_state_dict(path)
    features = {k: v for k, v in without_counters(state).items() if not k.startswith(CLASSIFIERS)}
    expected = _features(backbone)
    if problem := first_difference(without_counters(expected), features):
        others = (one for one in get_args(Backbone) if not first_difference(without_counters(_features(one)), features))
        hint = (
            f"it fits a {other}" if (other := next(others, "")) else f"expected torchvision's state dict of {backbone}"
        )
        raise CheckpointError(f"pretrain.file: {path} does not fit {backbone}: {problem}; {hint}; use another file")
    for key, value in features.items():
        if not value.isfinite().all():
            raise CheckpointError(f"pretrain.file: {path}: {key!r} has values that are not finite; use another file")
    counters = {key: state.get(key, torch.tensor(0)) for key in expected if key.endswith(BATCH_COUNTER)}
    classifier = vgg_classifier(state) if backbone == "vgg16" else {}
    has_classifier = any(key.startswith(CLASSIFIERS) for key in state)
    rest = (
        "with fc6 and fc7"
        if classifier
        else "its classifier left out"
        if has_classifier
        else "no classifier in the file"
    )
    log.info("%s: all %d tensors of %s's features, %s", path, len(features | counters), backbone, rest)
    return features | counters | classifier


def vgg_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fc6 and fc7 of VGG16, if a state dict has both with finite values in the published shapes, else nothing."""
    with torch.device("meta"):
        own = make_backbone("vgg16").state_dict()
    found = {key: value for key, value in state.items() if key.startswith(VGG_FC)}
    expected = {key: value for key, value in own.items() if key.startswith(VGG_FC)}
    complete = not first_difference(expected, found) and all(value.isfinite().all() for value in found.values())
    return found if complete else {}


def _features(backbone: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return feature_state(make_backbone(backbone))
