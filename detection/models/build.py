"""Build a detector from a recipe; save it to a file and load it back."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.errors import CheckpointError
from detection.files import save_weights
from detection.models import ssd
from detection.models.backbones import first_difference, load_features, make_backbone
from detection.models.detector import Detector
from detection.models.faster_rcnn import FasterRCNN
from detection.models.fcos import FCOS
from detection.models.fpn import one_stage_pyramid
from detection.models.retinanet import RetinaNet
from detection.params.recipe import ARCHITECTURES, FasterRCNNRecipe, FCOSRecipe, Recipe, RetinaNetRecipe, SSDRecipe
from detection.params.stages import Tiles

log = logging.getLogger(__name__)
FORMAT = 2
"""Version of the detector file's format."""


def build_detector(recipe: Recipe, classes: int, backbone: dict[str, Tensor] | None) -> Detector:
    """Build a detector.

    Args:
        recipe: Recipe of the detector; without backbone weights, use `without_weights(recipe)`.
        classes: Number of classes, background not counted.
        backbone: Weights of the backbone's features, loaded strictly; None: random weights.

    Raises:
        CheckpointError: The weights do not fit the backbone.
    """
    network = _network(recipe)
    if backbone is not None:
        count = load_features(network, backbone)
        log.info("backbone %s: loaded all %d tensors", recipe.backbone, count)
    detector = _assemble(recipe, classes, network)
    if isinstance(detector.backbone, ssd.SSDBackboneVGG):
        if backbone is not None and "classifier.0.weight" in backbone:
            detector.backbone.load_classifier(backbone)
            log.info("conv6 and conv7: subsampled from fc6 and fc7")
        else:
            log.info("conv6 and conv7: random, since the backbone's weights have no fc6 and fc7")
    return detector


def _assemble(recipe: Recipe, classes: int, network: nn.Module) -> Detector:
    match recipe:
        case FasterRCNNRecipe():
            return FasterRCNN(recipe, classes, network)
        case RetinaNetRecipe():
            return RetinaNet(recipe, classes, one_stage_pyramid(recipe, network))
        case FCOSRecipe():
            return FCOS(recipe, classes, one_stage_pyramid(recipe, network))
        case SSDRecipe():
            return ssd.build(recipe, classes, network)


def _network(recipe: Recipe) -> nn.Module:
    if recipe.backbone == "vgg16":
        return make_backbone("vgg16")  # has no BatchNorm
    if isinstance(recipe, SSDRecipe):
        options: dict[str, Any] = {"reduced_tail": True} if recipe.reduced_tail else {}
        return make_backbone(recipe.backbone, norm_layer=ssd.LITE_NORM, **options)
    # as torchvision's detectors, with the usual epsilon in every live BatchNorm, MobileNet's too
    return make_backbone(recipe.backbone, bn=recipe.bn, norm_layer=nn.BatchNorm2d)


def without_weights(recipe: Recipe) -> Recipe:
    """Recipe for a backbone with random weights: all layers trained in every phase, BatchNorm live.

    Frozen random layers cannot learn. The change is logged.
    """
    layers = 6 if recipe.backbone.startswith("mobilenet") else 5
    frozen_phase = any(phase.freeze_backbone for phase in recipe.schedule.phases)
    if recipe.bn != "live" or recipe.trainable_layers < layers or frozen_phase:
        log.info("backbone %s: no pretrained weights, training all layers with live BatchNorm", recipe.backbone)
    phases = tuple(replace(phase, freeze_backbone=False) for phase in recipe.schedule.phases)
    schedule = replace(recipe.schedule, phases=phases)
    return replace(recipe, bn="live", trainable_layers=layers, schedule=schedule)


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A trained detector with the metadata of its file."""

    detector: Detector
    """Detector in evaluation mode."""
    recipe: Recipe
    """Recipe it was built from."""
    classes: tuple[str, ...]
    """Class names, indexed by label."""
    model: str
    """Name of the recipe."""
    tiles: Tiles | None = None
    """Windows that images are cut into, as in training."""
    upright: bool = True
    """Turn images as their EXIF orientation says, as in training."""


def save_detector(
    path: Path,
    state: dict[str, Tensor],
    recipe: Recipe,
    classes: tuple[str, ...],
    model: str,
    notes: Mapping[str, Any] | None = None,
    tiles: Tiles | None = None,
    upright: bool = True,
) -> None:
    """Write a detector's file: weights, recipe, class names, tiles, EXIF reading, and notes (monitored metric, ...)."""
    import msgspec  # not at the top: building and training work without it

    content = {
        "format": FORMAT,
        "model": model,
        "recipe": msgspec.to_builtins(asdict(recipe)),
        "classes": list(classes),
        "notes": dict(notes or {}),
        "state_dict": state,
    }
    if tiles is not None:
        content["tiles"] = asdict(tiles)
    if not upright:
        content["exif"] = "stored"
    save_weights(path, content)


def load_detector(path: str | Path, device: torch.device | str = "cpu") -> LoadedDetector:
    """Read a detector's file.

    Raises:
        CheckpointError: The file is missing, is not a detector's file, or does not fit its own recipe.
    """
    import msgspec

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; train a detector first: dvc repro") from None
    except Exception as error:
        raise CheckpointError(f"{path} is not a detector's file: {str(error).splitlines()[0]}") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or "recipe" not in saved:
        raise CheckpointError(f"{path} is not a detector's file of this project; `train` writes models/detector.pt")
    try:
        recipe = msgspec.convert(saved["recipe"], ARCHITECTURES[saved["recipe"]["architecture"]])
        classes = tuple(saved["classes"])
        tiles = msgspec.convert(saved["tiles"], Tiles) if "tiles" in saved else None
        detector = _assemble(recipe, len(classes), _network(recipe))
        if difference := first_difference(detector.state_dict(), saved["state_dict"]):
            raise CheckpointError(f"{path} does not fit its own recipe: {difference}")
        detector.load_state_dict(saved["state_dict"], strict=True)
    except (KeyError, msgspec.ValidationError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit its own recipe: {str(error).splitlines()[-1].strip()}") from None
    upright = saved.get("exif") != "stored"
    return LoadedDetector(detector.to(device).eval(), recipe, classes, saved["model"], tiles, upright)


def check_classes(path: str | Path, loaded: LoadedDetector, classes: tuple[str, ...]) -> None:
    """Refuse a detector whose classes differ from the data's, in names or order.

    Args:
        path: File of the detector, for the message.
        loaded: The detector.
        classes: Class names of the data, indexed by label.

    Raises:
        CheckpointError: The classes differ; names the first difference in each direction.
    """
    if loaded.classes == classes:
        return
    unknown = [f"has {name!r}, which the data does not have" for name in loaded.classes if name not in classes]
    missing = [f"lacks {name!r}" for name in classes if name not in loaded.classes]
    pairs = enumerate(zip(loaded.classes, classes, strict=False))
    moved = [f"has {a!r} as class {i}, where the data has {b!r}" for i, (a, b) in pairs if a != b]
    difference = " and ".join([*missing[:1], *unknown[:1]] or moved[:1])
    raise CheckpointError(f"{path} has other classes than the data: it {difference}; train again: dvc repro")
