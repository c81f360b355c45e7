"""Detector files, strict loading of weights, and recipes without weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection.errors import CheckpointError
from detection.models.backbones import feature_state, make_backbone
from detection.models.build import (
    LoadedDetector,
    build_detector,
    check_classes,
    load_detector,
    save_detector,
    without_weights,
)
from detection.params import Recipe, load

CLASSES = 3


def load_recipe(model: str, dataset: str = "shapes") -> Recipe:
    return load(model=model, dataset=dataset).recipe


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large", "vgg16"])
def test_backbone_weights_are_loaded_strictly(backbone: str) -> None:
    model = {"resnet18": "retinanet_resnet18", "mobilenet_v3_large": "ssdlite320", "vgg16": "ssd300"}[backbone]
    recipe = load_recipe(model)
    state = {k: torch.randn_like(v.float()).to(v.dtype) for k, v in feature_state(make_backbone(backbone)).items()}
    detector = build_detector(recipe, CLASSES, state)
    own = {tuple(v.shape): v for v in detector.state_dict().values()}
    first = next(iter(state.values()))
    assert torch.equal(own[tuple(first.shape)], first)
    name = next(iter(state))
    with pytest.raises(CheckpointError, match=name):
        build_detector(recipe, CLASSES, {k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match="'strange'"):
        build_detector(recipe, CLASSES, state | {"strange": first})


def test_without_weights_no_phase_freezes_the_backbone() -> None:
    recipe = load(model="fasterrcnn_resnet50_c4", dataset="voc2007").recipe
    assert [phase.freeze_backbone for phase in recipe.schedule.phases] == [True, False]
    trained = without_weights(recipe)
    assert [phase.freeze_backbone for phase in trained.schedule.phases] == [False, False]
    assert [phase.until for phase in trained.schedule.phases] == [50, 100]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_detector(path)
    path.write_text("text")
    with pytest.raises(CheckpointError, match="not a detector's file"):
        load_detector(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="not a detector's file"):
        load_detector(path)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    recipe = without_weights(load_recipe("retinanet_resnet18"))
    detector = build_detector(recipe, CLASSES, None)
    path = tmp_path / "detector.pt"
    save_detector(path, detector.state_dict(), replace(recipe, backbone="resnet34"), ("a", "b", "c"), "some")
    with pytest.raises(CheckpointError) as raised:
        load_detector(path)
    assert "does not fit its own recipe: the file lacks 'backbone.body.layer1.2." in str(raised.value)
    # an extra layer, and another number of classes
    more = detector.state_dict() | {"extra": torch.zeros(1)}
    save_detector(path, more, recipe, ("a", "b", "c"), "some")
    with pytest.raises(CheckpointError, match="has 'extra'"):
        load_detector(path)
    save_detector(path, detector.state_dict(), recipe, ("a", "b"), "some")
    with pytest.raises(CheckpointError, match=r"in the file, .* in the network"):
        load_detector(path)


@pytest.mark.parametrize(
    ("classes", "differences"),
    [
        (("cat", "cow"), ["lacks 'dog'", "has 'cow'"]),
        (("cat",), ["lacks 'dog'"]),
        (("cat", "dog", "cow"), ["has 'cow'"]),
        (("dog", "cat"), ["has 'dog' as class 0"]),
    ],
)
def test_a_detector_of_other_classes_is_refused(classes: tuple[str, ...], differences: list[str]) -> None:
    recipe = load_recipe("retinanet_resnet18")
    detector: Any = nn.Identity()
    with pytest.raises(CheckpointError, match="train again") as raised:
        check_classes("detector.pt", LoadedDetector(detector, recipe, classes, "some"), ("cat", "dog"))
    assert [d for d in ("lacks 'dog'", "has 'cow'", "has 'dog' as class 0") if d in str(raised.value)] == differences
    check_classes("detector.pt", LoadedDetector(detector, recipe, ("cat", "dog"), "some"), ("cat", "dog"))
