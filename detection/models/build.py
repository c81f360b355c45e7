"""From a recipe to a detector, and from a detector's file back to it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.errors import CheckpointError
from detection.files import save_weights
from detection.models import faster_rcnn, fcos, retinanet, ssd
from detection.models.backbones import first_difference, load_features, make_backbone
from detection.models.detector import Detector
from detection.params.recipe import (
    ARCHITECTURES,
    FasterRCNNRecipe,
    FCOSRecipe,
    Recipe,
    RetinaNetRecipe,
    SSDRecipe,
)

log = logging.getLogger(__name__)
FORMAT = 2


def build_detector(recipe: Recipe, classes: int, backbone: dict[str, Tensor] | None) -> Detector:
    """Build a detector.

    Args:
        recipe: What to build; without weights, what `without_weights` makes of it.
        classes: Number of classes, background not counted.
        backbone: Weights of its features, loaded strictly; None leaves them random.

    Raises:
        CheckpointError: Weights that do not fit the backbone.
    """
    network = _network(recipe)
    if backbone is not None:
        count = load_features(network, backbone)
        log.info("backbone %s: all %d tensors loaded, none left over", recipe.backbone, count)
    return _assemble(recipe, classes, network)


def _assemble(recipe: Recipe, classes: int, network: nn.Module) -> Detector:
    if isinstance(recipe, FasterRCNNRecipe):
        return faster_rcnn.build(recipe, classes, network)
    if isinstance(recipe, RetinaNetRecipe):
        return retinanet.build(recipe, classes, network)
    if isinstance(recipe, FCOSRecipe):
        return fcos.build(recipe, classes, network)
    return ssd.build(recipe, classes, network)


def _network(recipe: Recipe) -> nn.Module:
    if recipe.backbone == "vgg16":
        return make_backbone("vgg16")  # has no BatchNorm
    if recipe.architecture == "ssdlite":
        assert isinstance(recipe, SSDRecipe)
        options: dict[str, Any] = {"reduced_tail": True} if recipe.reduced_tail else {}
        return make_backbone(recipe.backbone, norm_layer=ssd.LITE_NORM, **options)
    # torchvision's detectors give every live BatchNorm the usual epsilon, MobileNet's too
    return make_backbone(recipe.backbone, bn=recipe.bn, norm_layer=nn.BatchNorm2d)


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe for a backbone that starts from random weights.

    Frozen random layers cannot learn: all layers are trained in every phase and BatchNorm is live, and the
    log says so.
    """
    layers = 6 if recipe.backbone.startswith("mobilenet") else 5
    waits = any(phase.freeze_backbone for phase in recipe.schedule.phases)
    if recipe.bn != "live" or recipe.trainable_layers < layers or waits:
        log.info(
            "backbone %s: no weights, so all its layers are trained and BatchNorm is live", recipe.backbone
        )
    phases = tuple(replace(phase, freeze_backbone=False) for phase in recipe.schedule.phases)
    schedule = replace(recipe.schedule, phases=phases)
    return replace(recipe, bn="live", trainable_layers=layers, schedule=schedule)


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A trained detector and what it needs to be used."""

    detector: Detector
    """In evaluation mode."""
    recipe: Recipe
    """What it was built from."""
    classes: tuple[str, ...]
    """Class names; labels index them."""
    model: str
    """The recipe's name."""


def save_detector(
    path: Path,
    state: dict[str, Tensor],
    recipe: Recipe,
    classes: tuple[str, ...],
    model: str,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a detector's file: weights, recipe, class names, and notes (monitored metric, dataset, …)."""
    import msgspec  # here, as building and training do without it

    content = {
        "format": FORMAT,
        "model": model,
        "recipe": msgspec.to_builtins(asdict(recipe)),
        "classes": list(classes),
        "notes": dict(notes or {}),
        "state_dict": state,
    }
    save_weights(path, content)


def check_classes(path: str | Path, loaded: LoadedDetector, wanted: tuple[str, ...]) -> None:
    """Refuse a detector that was trained on other classes than the data has, or in another order.

    Args:
        path: Its file, for the message.
        loaded: The detector.
        wanted: Class names of the data; labels index them.

    Raises:
        CheckpointError: Naming the first difference in each direction.
    """
    if loaded.classes == wanted:
        return
    unknown = [f"knows {name!r}, which the data has not" for name in loaded.classes if name not in wanted]
    missing = [f"lacks {name!r}" for name in wanted if name not in loaded.classes]
    pairs = enumerate(zip(loaded.classes, wanted, strict=False))
    moved = [f"has {a!r} as class {i}, where the data has {b!r}" for i, (a, b) in pairs if a != b]
    said = " and ".join([*missing[:1], *unknown[:1]] or moved[:1])
    raise CheckpointError(f"{path} is of other classes: it {said}; train again: dvc repro")


def load_detector(path: str | Path, device: torch.device | str = "cpu") -> LoadedDetector:
    """Read a detector's file.

    Raises:
        CheckpointError: No such file, not a detector's file, or weights that do not fit its own recipe.
    """
    import msgspec

    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there; train one first: dvc repro") from None
    except Exception as error:
        raise CheckpointError(f"{path} is not a detector's file: {str(error).splitlines()[0]}") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or "recipe" not in saved:
        raise CheckpointError(
            f"{path} is not a detector's file of this project; `train` writes models/detector.pt"
        )
    try:
        recipe = msgspec.convert(saved["recipe"], ARCHITECTURES[saved["recipe"]["architecture"]])
        classes = tuple(saved["classes"])
        detector = _assemble(recipe, len(classes), _network(recipe))
        if difference := first_difference(detector.state_dict(), saved["state_dict"]):
            raise CheckpointError(f"{path} does not fit its own recipe: {difference}")
        detector.load_state_dict(saved["state_dict"], strict=True)
    except (KeyError, msgspec.ValidationError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit its own recipe: {str(error).splitlines()[-1].strip()}"
        ) from None
    return LoadedDetector(detector.to(device).eval(), recipe, classes, saved["model"])
