"""torchvision's one-stage builders against ours: same weights, same images, same losses and detections.

`pytest -s tests/models/test_one_stage_parity.py` prints one line per builder.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from detection.models.build import build_detector
from detection.models.detector import Detections, Detector, ImageSizes, Targets
from detection.params import Recipe, load

CLASSES = 5
NAMES = {"class": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}


@dataclass(frozen=True)
class Builder:
    """A builder of torchvision, and the recipe of the same detector."""

    recipe: str
    changes: dict[str, Any]
    side: int
    """Side of the batch in pixels."""
    background: int
    """1 if torchvision's classes include a background."""


COCO_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
BUILDERS = {
    "retinanet_resnet50_fpn": Builder("retinanet", {"bn": "live"}, 96, 0),
    "retinanet_resnet50_fpn_v2": Builder("retinanet_v2", {}, 96, 0),
    "fcos_resnet50_fpn": Builder("fcos", {"bn": "live"}, 96, 0),
    "ssd300_vgg16": Builder(
        "ssd300",
        {"default_boxes.scales": COCO_SCALES, "default_boxes.clip_centers": False, "topk_candidates": 400}
        | {"clip_before_nms": True, "detections_per_image": 200},
        300,
        1,
    ),
    "ssdlite320_mobilenet_v3_large": Builder("ssdlite320", {"reduced_tail": True}, 320, 1),
}


@dataclass(frozen=True)
class Pair:
    name: str
    ours: Detector
    theirs: Any
    recipe: Recipe
    spec: Builder


def trained_layers(recipe: Recipe) -> int:
    return 6 if recipe.backbone.startswith("mobilenet") else 5


def make_pair(name: str) -> Pair:
    """Both detectors with the weights of torchvision's builder, randomized so that scores differ."""
    spec = BUILDERS[name]
    torch.manual_seed(0)
    build = getattr(torchvision.models.detection, name)
    theirs = build(weights=None, weights_backbone=None, num_classes=CLASSES + spec.background)
    recipe = load(model=spec.recipe, dataset="coco2017").recipe
    recipe = recipe.update({"trainable_layers": trained_layers(recipe), **spec.changes})
    ours = build_detector(recipe, CLASSES, None)
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return Pair(name, ours, theirs, recipe, spec)


def randomize(model: Any) -> None:
    """Random BatchNorm statistics and head weights, as a trained network has them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, layer in model.head.named_modules():
        if isinstance(layer, nn.Conv2d):
            last = name.endswith(("cls_logits", "bbox_reg", "bbox_ctrness")) or "module_list" in name
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=(1 if last else 2) ** 0.5 / fan_in**0.5)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, mean=-1 if name.endswith("cls_logits") else 0, std=0.3)


class RandomMaps(nn.Module):
    """Replaces a backbone by random feature maps, so that a batch costs only the heads."""

    def __init__(self, backbone: nn.Module, side: int) -> None:
        super().__init__()
        with torch.no_grad():
            maps = backbone.eval()(torch.zeros(1, 3, side, side))
        self.shapes = {name: tuple(level.shape[1:]) for name, level in maps.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(len(images))
        return {name: torch.randn(len(images), *shape, generator=generator) for name, shape in self.shapes.items()}


@pytest.fixture(scope="module", params=list(BUILDERS))
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param)


def make_batch(pair: Pair, count: int, seed: int = 0) -> tuple[Tensor, Targets, ImageSizes]:
    """Images of different sizes (if the recipe keeps the aspect ratio); every third has no objects."""
    generator = torch.Generator().manual_seed(seed)
    side, most = pair.spec.side, 4
    images = torch.rand(count, 3, side, side, generator=generator)
    inside = torch.full((count, 2), side)
    if pair.recipe.resize == "keep":
        inside = torch.randint(side // 2, side + 1, (count, 2), generator=generator)
    corner = torch.rand(count, most, 2, generator=generator) * side * 0.4
    extent = torch.rand(count, most, 2, generator=generator) ** 2 * side * 0.5 + 4
    boxes = torch.cat([corner, corner + extent], dim=2)
    mask = torch.rand(count, most, generator=generator) < 0.8
    mask[2::3] = False
    labels = torch.randint(0, CLASSES, (count, most), generator=generator) * mask
    targets = Targets(boxes * mask[..., None], labels, mask, inside)
    return images, targets, ImageSizes(inside, inside)


def their_inputs(pair: Pair, images: Tensor, targets: Targets) -> tuple[Any, list[dict[str, Tensor]]]:
    """The same batch as torchvision's input after its resizing."""
    normalized = (images - pair.ours.mean) / pair.ours.std  # type: ignore[operator]
    sizes = [(int(h), int(w)) for h, w in targets.sizes]
    truth = [
        {"boxes": boxes[mask], "labels": labels[mask] + pair.spec.background}
        for boxes, labels, mask in zip(targets.boxes, targets.labels, targets.mask, strict=True)
    ]
    return torchvision.models.detection.image_list.ImageList(normalized, sizes), truth


def theirs_forward(pair: Pair, images: Tensor, targets: Targets) -> Any:
    """torchvision's forward pass without its transform."""
    listed, truth = their_inputs(pair, images, targets)

    class Transform(nn.Module):
        def forward(self, _: object, __: object) -> Any:
            return listed, truth

        def postprocess(self, result: Any, *_: object) -> Any:
            return result

    pair.theirs.transform = Transform()
    return pair.theirs([image for image in images], truth)


def use_running_statistics(pair: Pair) -> None:
    """Training mode with BatchNorm in evaluation mode, so that images are independent."""
    for model in (pair.ours.train(), pair.theirs.train()):
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def relative(a: Tensor, b: Tensor, least: float = 1e-12) -> float:
    """Largest difference relative to the largest value of `b`, or to `least`."""
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    return float((a - b).abs().max() / b.abs().max().clamp(min=least))


def losses_and_gradients(pair: Pair, count: int) -> tuple[float, float]:
    """Largest relative difference of a loss, and of a parameter's gradient."""
    use_running_statistics(pair)
    images, targets, _ = make_batch(pair, count, seed=count)
    ours = pair.ours.losses(images, targets)
    theirs = theirs_forward(pair, images, targets)
    assert {NAMES[name] for name in ours} == set(theirs)
    worst_loss = max(relative(value.detach(), theirs[NAMES[name]].detach()) for name, value in ours.items())
    for model, losses in ((pair.ours, ours), (pair.theirs, theirs)):
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
    found, expected = (
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for model in (pair.ours, pair.theirs)
    )
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return worst_loss, max(relative(found[name], expected[name], 1e-5 * largest) for name in expected)


def raw_outputs(pair: Pair) -> float:
    images, targets, _ = make_batch(pair, 1)
    pair.ours.eval()
    pair.theirs.eval()
    with torch.inference_mode():
        ours = pair.ours.core(images)
        features = pair.theirs.backbone(their_inputs(pair, images, targets)[0].tensors)
        theirs = pair.theirs.head(list(features.values()))
    return max(relative(ours[name], theirs[name]) for name in theirs)


def unmatched(ours: Detections, theirs: dict[str, Tensor], background: int) -> int:
    """Number of detections without an equal in the other list, except those with the lowest score."""
    boxes, scores, labels = theirs["boxes"], theirs["scores"], theirs["labels"] - background
    last = max(float(ours.scores[-1:].sum()), float(scores[-1:].sum())) + 1e-6
    near = (ours.boxes[:, None] - boxes[None]).abs().amax(2) <= 1e-3
    near &= (ours.scores[:, None] - scores[None]).abs() <= 1e-5
    near &= ours.labels[:, None] == labels[None]
    return int((~near.any(1) & (ours.scores > last)).sum() + (~near.any(0) & (scores > last)).sum())


def detections(pair: Pair, count: int) -> tuple[int, int]:
    """Number of detections, and of those of either detector without an equal."""
    images, targets, sizes = make_batch(pair, count, seed=10 + count)
    pair.ours.eval()
    pair.theirs.eval()
    with torch.inference_mode():
        ours = pair.ours.detect(images, sizes)
        theirs = theirs_forward(pair, images, targets)
    assert [len(one.scores) for one in ours] == [len(one["scores"]) for one in theirs]
    lost = sum(unmatched(a, b, pair.spec.background) for a, b in zip(ours, theirs, strict=True))
    return sum(len(one.scores) for one in ours), lost


def test_state_dicts_are_exchangeable(pair: Pair) -> None:
    state = pair.ours.state_dict()
    pair.theirs.load_state_dict(state, strict=True)
    assert list(state) == list(pair.theirs.state_dict())
    assert sum(p.numel() for p in pair.ours.parameters()) == sum(p.numel() for p in pair.theirs.parameters())


def test_equal_to_torchvision(pair: Pair) -> None:
    """One image through the whole network; batches of 2 and 5 through heads, losses and postprocessing."""
    outputs = raw_outputs(pair)
    worst = [losses_and_gradients(pair, 1)]
    maps = RandomMaps(pair.ours.backbone, pair.spec.side)  # type: ignore[arg-type]
    pair.ours.backbone = pair.theirs.backbone = maps
    worst += [losses_and_gradients(pair, count) for count in (2, 5)]
    found = [detections(pair, count) for count in (1, 2, 5)]
    loss, gradient = (max(column) for column in zip(*worst, strict=True))
    total, lost = (sum(column) for column in zip(*found, strict=True))
    print(  # noqa: T201
        f"\n{pair.name}: losses {loss:.1e}, gradients {gradient:.1e}, outputs {outputs:.1e} (relative); "
        f"{total} detections, {lost} differ"
    )
    assert loss <= 1e-5
    assert gradient <= 1e-4
    assert outputs <= 1e-5
    assert total > 500
    assert lost == 0
