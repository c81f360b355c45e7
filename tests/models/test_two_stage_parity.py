"""torchvision's two-stage builders against ours: same weights, same tensors, float32."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision.models.detection as peers
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detection.data.loading.batch import ImageSizes, Targets
from detection.models import faster_rcnn
from detection.models.build import build_detector, without_weights
from detection.models.detector import Detections
from detection.models.faster_rcnn import FasterRCNN
from detection.ops import matcher, roi_align
from detection.params import FasterRCNNRecipe, load

BUILDERS = {
    "fasterrcnn": peers.fasterrcnn_resnet50_fpn,
    "fasterrcnn_v2": peers.fasterrcnn_resnet50_fpn_v2,
    "fasterrcnn_mobilenet": peers.fasterrcnn_mobilenet_v3_large_fpn,
    "fasterrcnn_mobilenet_320": peers.fasterrcnn_mobilenet_v3_large_320_fpn,
}
CLASSES, SIDE = 3, 96
SMALLER = {"roi.batch_size_per_image": 32, "rpn.post_nms_top_n.train": 200, "rpn.post_nms_top_n.test": 50}
THEIR_NAMES = {
    "roi.batch_size_per_image": "box_batch_size_per_image",
    "rpn.post_nms_top_n.train": "rpn_post_nms_top_n_train",
    "rpn.post_nms_top_n.test": "rpn_post_nms_top_n_test",
}


@dataclass
class Pair:
    name: str
    ours: FasterRCNN
    theirs: Any


@pytest.fixture(autouse=True)
def same_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both detectors sample the first candidates."""

    def first(positive: Tensor, negative: Tensor, count: int, fraction: float) -> matcher.BalancedSample:
        keys = torch.linspace(0, 0.999, positive.shape[1]).expand(positive.shape)
        return balanced_sample(positive, negative, count, fraction, keys)

    balanced_sample = matcher.balanced_sample
    monkeypatch.setattr(faster_rcnn, "balanced_sample", first)
    # Use torchvision's kernel: the matrix products have their own test, and their different rounding flips
    # some ReLUs, which in a random network is visible in the first layer's gradient.
    monkeypatch.setattr(roi_align, "MAX_MATMUL_CELLS", dict.fromkeys(roi_align.MAX_MATMUL_CELLS, 0))


class FirstCandidates:
    """Replaces torchvision's sampler."""

    def __init__(self, count: int, fraction: float) -> None:
        self.count, self.most = count, int(count * fraction)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positives, negatives = [], []
        for one in labels:
            positive = (one >= 1) & ((one >= 1).cumsum(0) <= self.most)
            room = self.count - int(positive.sum())
            positives.append(positive.to(torch.uint8))
            negatives.append(((one == 0) & ((one == 0).cumsum(0) <= room)).to(torch.uint8))
        return positives, negatives


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """The published recipe with fewer proposals and samples, and torchvision's builder."""
    recipe = without_weights(load(model=request.param, dataset="coco2017").recipe).update(SMALLER)
    assert isinstance(recipe, FasterRCNNRecipe)
    torch.manual_seed(0)
    ours = build_detector(recipe, CLASSES, None)
    assert isinstance(ours, FasterRCNN)
    theirs = BUILDERS[request.param](
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        **{THEIR_NAMES[name]: value for name, value in SMALLER.items()},
    )
    randomize(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.rpn.fg_bg_sampler = FirstCandidates(recipe.rpn.batch_size_per_image, recipe.rpn.positive_fraction)
    theirs.roi_heads.fg_bg_sampler = FirstCandidates(recipe.roi.batch_size_per_image, recipe.roi.positive_fraction)
    return Pair(request.param, ours, theirs)


def randomize(detector: FasterRCNN) -> None:
    """Give BatchNorm the statistics of random images, and the output layers weights that vary by location."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images, targets, _ = batch(4)
    with torch.no_grad():
        detector.train().losses(images, targets)
        for name, parameter in detector.named_parameters():
            if name.startswith(("rpn.head.cls", "rpn.head.bbox", "roi_heads.box_predictor")):
                parameter.normal_(std=0.05)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def batch(count: int) -> tuple[Tensor, Targets, ImageSizes]:
    """Images of different sizes; of more than one, the last has no objects."""
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator)
    inside = torch.tensor([[SIDE - 13 * i, SIDE - 7 * (count - 1 - i)] for i in range(count)])
    for image, (height, width) in zip(images, inside.tolist(), strict=True):
        image[:, height:] = 0.45
        image[:, :, width:] = 0.45
    corner = torch.rand(count, 6, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 8 + torch.rand(count, 6, 2, generator=generator) * 40], dim=2)
    mask = torch.arange(6) < torch.tensor([6, 1, 4, 2, 0])[:count, None]
    if count > 1:
        mask[-1] = False
    labels = torch.randint(0, CLASSES, (count, 6), generator=generator)
    targets = Targets(boxes * mask[..., None], labels * mask, mask, inside)
    return images, targets, ImageSizes(inside, inside * 2)


def as_lists(targets: Targets) -> list[dict[str, Tensor]]:
    return [
        {"boxes": boxes[mask], "labels": labels[mask] + 1}
        for boxes, labels, mask in zip(targets.boxes, targets.labels, targets.mask, strict=True)
    ]


def padded(proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
    most = max(len(one) for one in proposals)
    boxes = torch.stack([nn.functional.pad(one, (0, 0, 0, most - len(one))) for one in proposals])
    return boxes, torch.stack([torch.arange(most) < len(one) for one in proposals])


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-9))


def their_inside(pair: Pair, images: Tensor, sizes: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
    pixels = (images - pair.ours.mean) / pair.ours.std
    return ImageList(pixels, [(int(h), int(w)) for h, w in sizes.tolist()]), pair.theirs.backbone(pixels)


NAMES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "roi_class": "loss_classifier",
    "roi_box": "loss_box_reg",
}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_losses_and_gradients_are_torchvisions(pair: Pair, count: int) -> None:
    images, targets, _ = batch(count)
    ours, theirs = pair.ours.train(), pair.theirs.train()
    state = {k: v.clone() for k, v in ours.state_dict().items()}

    inside, features = their_inside(pair, images, targets.sizes)
    proposals, expected = theirs.rpn(inside, features, as_lists(targets))
    _, of_roi = theirs.roi_heads(features, proposals, inside.image_sizes, as_lists(targets))
    expected |= of_roi
    theirs.zero_grad()
    torch.stack(list(expected.values())).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}

    maps = ours.features(images)
    logits, deltas = ours.rpn(maps)
    anchors, _ = ours.rpn.anchors.for_batch(maps, images)
    losses = ours.rpn.losses(logits, deltas, anchors, targets)
    losses |= ours.roi_heads.losses(maps, *padded(proposals), targets, SIDE, SIDE)
    ours.zero_grad()
    torch.stack(list(losses.values())).sum().backward()

    worst_loss = max(relative(losses[a], expected[b]) for a, b in NAMES.items())
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    each = {n: float((p.grad - gradients[n]).norm() / norm) for n, p in ours.named_parameters()}
    ours.load_state_dict(state)
    whole = ours.losses(images, targets)  # with its own proposals
    worst_whole = max(relative(whole[a].detach(), expected[b]) for a, b in NAMES.items())
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    print(  # noqa: T201
        f"\n{pair.name:26s} batch {count}: losses {worst_loss:.1e}, with own proposals {worst_whole:.1e}, "
        f"gradients {max(each.values()):.1e}",
        end="",
    )
    assert set(losses) == set(NAMES)
    assert worst_loss <= 1e-5
    assert max(each.values()) <= 1e-4
    assert worst_whole <= 1e-3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_proposals_and_detections_are_torchvisions(pair: Pair, count: int) -> None:
    images, _, sizes = batch(count)
    ours, theirs = pair.ours.eval(), pair.theirs.eval()
    with torch.inference_mode():
        inside, features = their_inside(pair, images, sizes.resized)
        raw = ours.core(images)
        for mine, map_ in zip(ours.features(images), features.values(), strict=True):
            assert relative(mine, map_) <= 1e-5
        proposals, _ = theirs.rpn(inside, features, None)
        expected, _ = theirs.roi_heads(features, proposals, inside.image_sizes, None)
        maps = list(features.values())
        boxes, mask = ours.rpn.propose(
            raw["objectness"], raw["deltas"], *ours.rpn.anchors.for_batch(maps, images), sizes.resized
        )
        found = ours.roi_heads.detect(maps, *padded(proposals), ImageSizes(sizes.resized, sizes.resized), SIDE, SIDE)
        whole = ours.detect(images, sizes)
    swapped = 0
    for mine, there, theirs_ in zip(boxes, mask, proposals, strict=True):
        assert int(there.sum()) == len(theirs_)
        swapped += int(((mine[there] - theirs_).abs().amax(1) > 1e-3).sum())
        assert unmatched(mine[there], theirs_) <= 0.01 * len(theirs_)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, Detections(other["boxes"], other["scores"], other["labels"] - 1))
    for one, other in zip(whole, expected, strict=True):  # sizes.original is twice the size inside
        assert abs(len(one.boxes) - len(other["boxes"])) <= 0.02 * len(other["boxes"])
        assert unmatched(one.boxes / 2, other["boxes"]) <= 0.02 * max(len(other["boxes"]), 50)
    total = sum(len(one.boxes) for one in found)
    print(  # noqa: T201
        f"\n{pair.name:26s} batch {count}: {int(mask.sum())} proposals, {swapped} in another order; "
        f"{total} detections equal",
        end="",
    )
    assert total > 0


def unmatched(mine: Tensor, theirs: Tensor) -> int:
    """Number of boxes without a counterpart within 1e-2 pixels."""
    if len(mine) == 0:
        return len(theirs)
    return int((torch.cdist(theirs, mine, p=torch.inf).amin(1) > 1e-2).sum())


def assert_same(mine: Detections, theirs: Detections) -> None:
    """Equal up to the order of near ties."""
    torch.testing.assert_close(mine.scores, theirs.scores, rtol=0, atol=1e-5)
    for label in theirs.labels.unique():
        a, b = mine.boxes[mine.labels == label], theirs.boxes[theirs.labels == label]
        assert len(a) == len(b)
        assert unmatched(a, b) == 0
