"""The protocol that every detector keeps; a later inside must pass these tests unchanged."""

import re
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
from detection.models.detector import Detector, ImageSizes, Targets
from detection.params import Recipe, load

MODELS = [
    "retinanet_resnet18",
    "fasterrcnn",
    "fasterrcnn_mobilenet",
    "fasterrcnn_mobilenet_320",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_vgg16",
    "retinanet",
    "retinanet_v2",
    "retinanet_257",
    "fcos",
    "ssd300",
    "ssdlite320",
]
CLASSES = 3


def load_recipe(model: str, dataset: str) -> Recipe:
    return load(model=model, dataset=dataset).recipe


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest) -> tuple[Recipe, Detector]:
    recipe = without_weights(load_recipe(request.param, "shapes"))
    torch.manual_seed(0)
    return recipe, build_detector(recipe, CLASSES, None)


def batch(recipe: Recipe, empty: bool = False) -> tuple[torch.Tensor, Targets, ImageSizes]:
    """Two pictures; the second fills only a part of the batch where the recipe keeps the aspect ratio."""
    side = recipe.image_size
    height = side if recipe.resize == "stretch" else side * 3 // 4
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    inside = torch.tensor([[side, side], [height, side]])
    boxes = torch.tensor([[[10.0, 10, 60, 70], [30, 20, 90, 90]], [[5, 5, 50, 40], [0, 0, 0, 0]]])
    mask = torch.tensor([[True, True], [True, False]]) & (not empty)
    targets = Targets(boxes, torch.tensor([[0, 2], [1, 0]]), mask, inside)
    return images, targets, ImageSizes(inside, torch.tensor([[side * 2, side * 3], [200, 100]]))


def test_losses_are_finite_scalars_with_gradients(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, targets, _ = batch(recipe)
    losses = detector.train().losses(images, targets)
    assert all(value.shape == () and torch.isfinite(value) for value in losses.values())
    detector.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    reached = {
        name.split(".")[0]
        for name, p in detector.named_parameters()
        if p.grad is not None and bool(p.grad.abs().sum() > 0)
    }
    assert reached == {name.split(".")[0] for name, _ in detector.named_parameters()}
    first = next(p for p in detector.parameters() if p.requires_grad)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_a_batch_without_objects_has_finite_losses(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, targets, _ = batch(recipe, empty=True)
    losses = detector.train().losses(images, targets)
    assert torch.isfinite(torch.stack(list(losses.values()))).all()


def test_detections_are_sorted_and_inside_the_original_pictures(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, _, sizes = batch(recipe)
    with torch.inference_mode():
        found = detector.eval().detect(images, sizes)
    assert len(found) == 2
    for one, (height, width) in zip(found, sizes.original.tolist(), strict=True):
        assert one.boxes.shape == (len(one.scores), 4)
        assert one.boxes.dtype == one.scores.dtype == torch.float32
        assert one.labels.dtype == torch.int64
        assert (one.scores[:-1] >= one.scores[1:]).all()
        assert ((one.labels >= 0) & (one.labels < CLASSES)).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes[:, [0, 2]] <= width).all()
        assert (one.boxes[:, [1, 3]] <= height).all()


def test_forward_is_losses_or_detect(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, targets, sizes = batch(recipe)
    assert isinstance(detector.train()(images, targets), dict)
    with torch.inference_mode():
        assert isinstance(detector.eval()(images, sizes), list)


def test_uint8_and_float_pictures_are_the_same(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, _, _ = batch(recipe)
    with torch.inference_mode():
        detector.eval()
        for a, b in zip(
            detector.core(images).values(), detector.core(images.float() / 255).values(), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_core_gives_raw_tensors_for_each_picture(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, _, _ = batch(recipe)
    with torch.inference_mode():
        outputs = detector.eval().core(images)
    assert outputs
    assert all(value.shape[0] == 2 for value in outputs.values())


def test_the_file_brings_the_same_detector_back(built: tuple[Recipe, Detector], tmp_path: Path) -> None:
    recipe, detector = built
    path = tmp_path / "detector.pt"
    save_detector(path, detector.state_dict(), recipe, ("a", "b", "c"), "some")
    loaded = load_detector(path)
    assert (loaded.recipe, loaded.classes, loaded.model) == (recipe, ("a", "b", "c"), "some")
    images, _, sizes = batch(recipe)
    with torch.inference_mode():
        before, after = detector.eval().detect(images, sizes), loaded.detector.detect(images, sizes)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes)
        torch.testing.assert_close(a.scores, b.scores)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large", "vgg16"])
def test_backbone_weights_are_loaded_strictly(backbone: str) -> None:
    model = {"resnet18": "retinanet_resnet18", "mobilenet_v3_large": "ssdlite320", "vgg16": "ssd300"}[
        backbone
    ]
    recipe = load_recipe(model, "shapes")
    state = {
        k: torch.randn_like(v.float()).to(v.dtype) for k, v in feature_state(make_backbone(backbone)).items()
    }
    detector = build_detector(recipe, CLASSES, state)
    own = {tuple(v.shape): v for v in detector.state_dict().values()}
    first = next(iter(state.values()))
    assert torch.equal(own[tuple(first.shape)], first)
    name = next(iter(state))
    with pytest.raises(CheckpointError, match=name):
        build_detector(recipe, CLASSES, {k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match="'strange'"):
        build_detector(recipe, CLASSES, state | {"strange": first})


def test_without_weights_no_phase_keeps_the_backbone_as_it_is() -> None:
    recipe = load(model="fasterrcnn_resnet50_c4", dataset="voc2007").recipe
    assert [phase.freeze_backbone for phase in recipe.schedule.phases] == [True, False]
    trained = without_weights(recipe)
    assert [phase.freeze_backbone for phase in trained.schedule.phases] == [False, False]
    assert [phase.until for phase in trained.schedule.phases] == [50, 100]


def test_what_is_no_detector_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(CheckpointError, match="not there"):
        load_detector(path)
    path.write_text("text")
    with pytest.raises(CheckpointError, match="not a detector's file"):
        load_detector(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="not a detector's file"):
        load_detector(path)


def test_another_architectures_weights_are_refused(tmp_path: Path) -> None:
    recipe = without_weights(load_recipe("retinanet_resnet18", "shapes"))
    detector = build_detector(recipe, CLASSES, None)
    path = tmp_path / "detector.pt"
    save_detector(path, detector.state_dict(), replace(recipe, backbone="resnet34"), ("a", "b", "c"), "some")
    with pytest.raises(CheckpointError) as raised:
        load_detector(path)
    assert "does not fit its own recipe: the file lacks 'backbone.body.layer1.2." in str(raised.value)
    # a layer that only the file has, and another number of classes
    more = detector.state_dict() | {"extra": torch.zeros(1)}
    save_detector(path, more, recipe, ("a", "b", "c"), "some")
    with pytest.raises(CheckpointError, match="the file has 'extra', which the network has not"):
        load_detector(path)
    save_detector(path, detector.state_dict(), recipe, ("a", "b"), "some")
    with pytest.raises(CheckpointError, match=r"in the file, .* in the network"):
        load_detector(path)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cat", "cow"), "it lacks 'dog' and knows 'cow', which the data has not; train again"),
        (("cat",), "it lacks 'dog'; train again"),
        (("cat", "dog", "cow"), "it knows 'cow', which the data has not; train again"),
        (("dog", "cat"), "it has 'dog' as class 0, where the data has 'cat'; train again"),
    ],
)
def test_a_detector_of_other_classes_is_refused(classes: tuple[str, ...], words: str) -> None:
    recipe = load_recipe("retinanet_resnet18", "shapes")
    detector: Any = nn.Identity()
    with pytest.raises(CheckpointError, match=re.escape(words)):
        check_classes("detector.pt", LoadedDetector(detector, recipe, classes, "some"), ("cat", "dog"))
    check_classes("detector.pt", LoadedDetector(detector, recipe, ("cat", "dog"), "some"), ("cat", "dog"))
