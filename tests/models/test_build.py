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


def test_ssd_subsamples_the_published_fc6_and_fc7() -> None:
    """The reduced VGG16 of the SSD paper: every fourth channel, every third cell. Weights hold their own indices."""
    out, into = torch.arange(4096.0), torch.arange(25088.0)
    features = feature_state(make_backbone("vgg16"))
    backbone: Any = None
    for held, index in ((out[:, None], 0), (into[None], 1)):
        fc6, fc7 = held.expand(4096, 25088), held[:, :4096].expand(4096, 4096)
        fc = {
            "classifier.0.weight": fc6,
            "classifier.0.bias": out,
            "classifier.3.weight": fc7,
            "classifier.3.bias": out,
        }
        if backbone is None:
            backbone = build_detector(load(model="ssd300").recipe, CLASSES, features | fc).backbone
        else:
            backbone.load_classifier(fc)
        _, conv6, _, conv7, _ = backbone.extra[0][-1]
        assert (conv6.weight.shape, conv7.weight.shape) == ((1024, 512, 3, 3), (1024, 1024, 1, 1))
        for o, c, y, x in ((0, 0, 0, 0), (5, 7, 1, 2), (1023, 511, 2, 2)):
            assert conv6.weight[o, c, y, x] == (4 * o, c * 49 + 3 * y * 7 + 3 * x)[index]
            assert conv7.weight[o, c, 0, 0] == (4 * o, 4 * c)[index]
        assert torch.equal(conv6.bias, out[::4])
        assert torch.equal(conv7.bias, out[::4])
