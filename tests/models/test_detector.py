"""The protocol of all detectors, for every recipe."""

from pathlib import Path

import pytest
import torch

from detection.models.build import build_detector, load_detector, save_detector, without_weights
from detection.models.detector import Detector, ImageSizes, Targets, mean_box_loss
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
    """Two images, the second smaller if the recipe keeps the aspect ratio."""
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


def test_detections_are_sorted_and_inside_the_original_images(built: tuple[Recipe, Detector]) -> None:
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


def test_uint8_and_float_images_give_the_same_outputs(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, _, _ = batch(recipe)
    with torch.inference_mode():
        detector.eval()
        for a, b in zip(detector.core(images).values(), detector.core(images.float() / 255).values(), strict=True):
            torch.testing.assert_close(a, b)


def test_core_returns_raw_tensors_per_image(built: tuple[Recipe, Detector]) -> None:
    recipe, detector = built
    images, _, _ = batch(recipe)
    with torch.inference_mode():
        outputs = detector.eval().core(images)
    assert outputs
    assert all(value.shape[0] == 2 for value in outputs.values())


def test_a_saved_and_loaded_detector_gives_the_same_detections(built: tuple[Recipe, Detector], tmp_path: Path) -> None:
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


def test_mean_box_loss_normalizers() -> None:
    loss = torch.tensor([[10.0, 0, 0], [0, 0, 0]])
    positive = torch.tensor([[True, False, False], [False] * 3])
    valid = torch.tensor([[True] * 3, [True, True, False]])
    assert float(mean_box_loss(loss, positive, valid, "sampled")) == pytest.approx(10 / 5)
    assert float(mean_box_loss(loss, positive, valid, "positives")) == pytest.approx(10 / 1 / 2)
