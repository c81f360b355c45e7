import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision

from detection.errors import CheckpointError
from detection.models.backbones import feature_state, make_backbone
from detection.params import load
from detection.training.pretrain import methods
from detection.training.pretrain.methods import describe_start, published, published_weights, select_method


def test_published_weights_without_network_are_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CheckpointError("resnet18 cannot be downloaded (no network)")

    monkeypatch.setattr(methods, "published_state_dict", refuse)
    with pytest.raises(CheckpointError, match=r"resnet18.*no network.*pretrain\.method"):
        published_weights("resnet18", "retinanet")


def test_published_weights_lack_only_their_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    state_dict = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(methods, "published_state_dict", lambda _: state_dict)
    state, name = published_weights("resnet18", "retinanet")
    assert state.keys() == feature_state(make_backbone("resnet18")).keys()
    assert name == "ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("backbone", "architecture", "name"),
    [
        ("resnet50", "fasterrcnn", "ResNet50_Weights.IMAGENET1K_V1"),
        ("mobilenet_v3_large", "ssdlite", "MobileNet_V3_Large_Weights.IMAGENET1K_V1"),
        ("vgg16", "fasterrcnn", "VGG16_Weights.IMAGENET1K_V1"),
        ("vgg16", "ssd", "VGG16_Weights.IMAGENET1K_FEATURES"),
    ],
)
def test_a_detector_starts_from_the_weights_of_its_publication(backbone: str, architecture: str, name: str) -> None:
    """torchvision's builders name these weights, not its newer ones."""
    assert str(published(backbone, architecture)) == name
    if (backbone, architecture) != ("vgg16", "fasterrcnn"):  # torchvision has no builder for it
        builder = {
            "fasterrcnn": torchvision.models.detection.fasterrcnn_resnet50_fpn,
            "ssdlite": torchvision.models.detection.ssdlite320_mobilenet_v3_large,
            "ssd": torchvision.models.detection.ssd300_vgg16,
        }[architecture]
        default = inspect.signature(builder).parameters["weights_backbone"].default
        assert str(default) == name


def test_a_classifier_that_was_not_published_is_omitted(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).state_dict()
    state_dict = {k: torch.zeros(1) if k.startswith("features") else torch.full((1,), torch.nan) for k in shapes}
    monkeypatch.setattr(methods, "published_state_dict", lambda _: state_dict)
    state, _ = published_weights("vgg16", "ssd")
    assert state.keys() == {k for k in shapes if k.startswith("features")}


def test_the_inputs_of_the_key_contain_precision_and_determinism() -> None:
    params = load()
    changes: list[dict[str, Any]] = [{}, {"precision": "fp32"}, {"determinism": "bitwise"}]
    inputs = [
        select_method(replace(params, train=replace(params.train, **change)), torch.device("cpu"))[0]
        for change in changes
    ]
    assert inputs[0] not in inputs[1:]
    assert inputs[1] != inputs[2]


@pytest.mark.parametrize(
    ("model", "dataset", "method", "text"),
    [
        (
            "fasterrcnn",
            "shapes",
            "crops",
            "crops of the training objects; as published: torchvision's ImageNet weights (pretrain.method=published)",
        ),
        ("fasterrcnn", "coco2017", "published", "torchvision's ImageNet weights"),
        (
            "retinanet_257",
            "voc2012",
            "published",
            "torchvision's ImageNet weights; as published: a classification training on imagenet "
            "(pretrain.method=imagefolder)",
        ),
    ],
)
def test_the_start_is_one_line_that_names_the_published_one(model: str, dataset: str, method: Any, text: str) -> None:
    params = load(model=model, dataset=dataset)
    assert describe_start(replace(params, pretrain=replace(params.pretrain, method=method))) == text
