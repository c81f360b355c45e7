"""Faster R-CNN at 600x600 against bubbliiiing/faster-rcnn-pytorch (51f9b62): targets, losses, detections.

Recorded with the original's RPN, heads and target creators on the boxes of augmented VOC2007 images. The feature maps
(8 channels, 37 or 38 cells) and all weights are `noise`: the backbones have tests of their own.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detection.data.loading.batch import ImageSizes, Targets
from detection.models import faster_rcnn
from detection.models.faster_rcnn import RPN, RoIHead
from detection.ops.matcher import BalancedSample, match
from detection.params import FasterRCNNRecipe, load
from tests.models.recorded_inputs import fill, noise, recorded

SIDE, CHANNELS, CLASSES = 600, 8, 20
Arrays = dict[str, NDArray[Any]]
CELLS = {"fasterrcnn_vgg16_600": 37, "fasterrcnn_resnet50_c4": 38}  # VGG16 rounds down, ResNet up


def recipe_of(model: str) -> FasterRCNNRecipe:
    recipe = load(model=model, dataset="voc0712").recipe.update({"rpn.channels": CHANNELS, "roi.hidden_channels": 32})
    assert isinstance(recipe, FasterRCNNRecipe)
    return recipe


def heads(model: str) -> tuple[RPN, RoIHead]:
    """Both stages of the recipe on maps of few channels."""
    recipe = recipe_of(model)
    layer4 = nn.Conv2d(CHANNELS, 16, 3, stride=2, padding=1)
    network = SimpleNamespace(layer4=layer4, fc=SimpleNamespace(in_features=16))
    rpn, roi = RPN(recipe, CHANNELS), RoIHead(recipe, CHANNELS, CLASSES, network)
    fill(rpn, 0.5)
    fill(roi)
    return rpn, roi


def features_of(model: str, images: int) -> list[Tensor]:
    return [noise(images, CHANNELS, CELLS[model], CELLS[model], seed=7)]


def targets_of(arrays: Arrays) -> Targets:
    boxes, labels = torch.from_numpy(arrays["boxes"]), torch.from_numpy(arrays["labels"])
    return Targets(boxes, labels.long(), labels >= 0, torch.full((len(boxes), 2), SIDE))


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_object_claims_one_anchor_which_is_regressed_to_it(model: str) -> None:
    """Every positive and its object, before sampling; with all ties there would be several times as many."""
    arrays, recipe = recorded(f"system_1_{model}"), recipe_of(model)
    targets, rpn = targets_of(arrays), recipe.rpn
    anchors = RPN(recipe, CHANNELS).anchors([(CELLS[model], CELLS[model])], (SIDE, SIDE))
    matches = match(targets.boxes, targets.mask, anchors, rpn.fg_iou, rpn.bg_iou, rpn.low_quality_matches)
    image, anchor = torch.where(matches >= 0)
    assert torch.stack([image, anchor, matches[image, anchor]], dim=1).tolist() == arrays["positives"].tolist()
    ties = match(targets.boxes, targets.mask, anchors, rpn.fg_iou, rpn.bg_iou, "all_ties")
    assert int((ties >= 0).sum()) > 3 * len(image)


def samples(arrays: Arrays) -> Any:
    """Replaces `balanced_sample`: the original's sample of anchors, then of proposals."""
    calls = iter(["anchor", "roi"])

    def sample(positive: Tensor, negative: Tensor, count: int, fraction: float) -> BalancedSample:
        kind = next(calls)
        index, label = torch.from_numpy(arrays[f"{kind}_sample"]).long(), torch.from_numpy(arrays[f"{kind}_positive"])
        assert index.shape[1] == count
        assert torch.equal(positive.gather(1, index), label)
        assert torch.equal(negative.gather(1, index), ~label)
        return BalancedSample(index, label, torch.ones_like(label))

    return sample


def test_the_losses_are_the_originals(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four, on the original's sample of anchors and proposals; the proposals are equal too, in order."""
    arrays = recorded(f"system_1_{model}")
    targets, (rpn, roi) = targets_of(arrays), heads(model)
    features = features_of(model, len(targets.boxes))
    monkeypatch.setattr(faster_rcnn, "balanced_sample", samples(arrays))
    logits, deltas = rpn(features)
    anchors, counts = rpn.anchors.for_batch(features, torch.empty(1, 3, SIDE, SIDE))
    losses = rpn.losses(logits, deltas, anchors, targets)
    proposals, mask = rpn.propose(logits, deltas, anchors, counts, targets.sizes)
    np.testing.assert_allclose(proposals.numpy(), arrays["proposals"], atol=2e-3)
    losses |= roi.losses(features, proposals, mask, targets, SIDE, SIDE)
    for name, expected in zip(["rpn_box", "rpn_objectness", "roi_box", "roi_class"], arrays["losses"], strict=True):
        assert float(losses[name].detach()) == pytest.approx(float(expected), rel=1e-6), name


def test_the_detections_are_the_originals(model: str) -> None:
    """Suppressed before they are clipped; pooled by the sides of map and image."""
    arrays, (rpn, roi) = recorded(f"system_1_{model}"), heads(model)
    features, sizes = features_of(model, 1), torch.tensor([[SIDE, SIDE]])
    for stage in (rpn, roi):
        stage.eval()
    with torch.inference_mode():
        anchors, counts = rpn.anchors.for_batch(features, torch.empty(1, 3, SIDE, SIDE))
        logits, deltas = rpn(features)
        proposals, mask = rpn.propose(logits, deltas, anchors, counts, sizes)
        (found,) = roi.detect(features, proposals, mask, ImageSizes(sizes, sizes), SIDE, SIDE)
    expected = arrays["detections"]  # the best: x1, y1, x2, y2, score
    assert len(found.scores) == arrays["detection_count"]
    np.testing.assert_allclose(found.scores[: len(expected)].numpy(), expected[:, 4], atol=1e-6)
    np.testing.assert_allclose(found.boxes[: len(expected)].numpy(), expected[:, :4].clip(0, SIDE), atol=2e-3)
