"""RetinaNet at 257 pixels against xytpai/retinanet (1aa7def) and SSD300 against amdegroot/ssd.pytorch (5b0b77f).

Recorded with the originals' encoder, loss and decoders; network outputs are `noise`.
"""

import math
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detection.data.loading.batch import ImageSizes, Targets
from detection.models.build import build_detector, without_weights
from detection.models.retinanet import RetinaNet
from detection.models.ssd import SSD
from detection.ops.anchors import DefaultBoxGenerator
from detection.ops.matcher import BACKGROUND, match
from detection.params import RetinaNetRecipe, SSDRecipe, load
from tests.models.recorded_inputs import noise, recorded

MAPS_257 = [(side, side) for side in (33, 17, 9, 5)]
ANCHORS_257, CLASSES = 4452, 20


DIFFERENT_OBJECTS = 8
"""Positives of the recorded images that belong to another object if the claim always wins, as in SSD."""


def retinanet_257(logits: Tensor, deltas: Tensor) -> RetinaNet:
    """The recipe's detector with given outputs."""
    recipe = load(model="retinanet_257", dataset="voc2012").recipe
    assert isinstance(recipe, RetinaNetRecipe)
    detector = RetinaNet(recipe, 1, nn.Identity())
    outputs = (logits, deltas, detector.anchors(MAPS_257, (257, 257)), detector.anchors.counts(MAPS_257))
    detector._outputs = lambda images: outputs  # type: ignore[method-assign]
    return detector


def padded_targets(arrays: dict[str, NDArray[Any]], images: int) -> Targets:
    counts = torch.from_numpy(arrays["counts"][:images]).long()
    mask = torch.arange(int(counts.max())) < counts[:, None]
    boxes, labels = torch.zeros(*mask.shape, 4), torch.zeros(mask.shape, dtype=torch.int64)
    total = int(counts.sum())
    boxes[mask] = torch.from_numpy(arrays["boxes"][:total])
    labels[mask] = torch.from_numpy(arrays["labels"][:total]).long()
    return Targets(boxes, labels, mask, torch.full((images, 2), 257))


def test_every_positive_anchor_at_257_pixels_is_the_originals() -> None:
    """600 images of VOC2007, cropped as in training: positives with their objects, and the number of negatives."""
    arrays = recorded("system_5")
    targets, detector = padded_targets(arrays, 600), retinanet_257(torch.empty(0), torch.empty(0))
    recipe, anchors = detector.recipe, detector.anchors(MAPS_257, (257, 257))
    arguments = (targets.boxes, targets.mask, anchors, recipe.fg_iou, recipe.bg_iou)
    matches = match(*arguments, recipe.low_quality_matches)
    image, anchor = torch.where(matches >= 0)
    found = torch.stack([image, anchor, matches[image, anchor]], dim=1)
    assert len(found) == 5718
    assert torch.equal(found, torch.from_numpy(arrays["positives"]).long())
    assert (matches == BACKGROUND).sum(1).tolist() == arrays["negatives"].tolist()
    claims_win = match(*arguments, "unique")
    assert torch.equal(claims_win >= 0, matches >= 0)
    assert int((claims_win != matches).sum()) == DIFFERENT_OBJECTS


def test_the_loss_at_257_pixels_is_the_originals() -> None:
    arrays = recorded("system_5")
    logits = noise(10, ANCHORS_257, CLASSES, seed=3) * 3 - 4
    detector = retinanet_257(logits, noise(10, ANCHORS_257, 4, seed=4))
    losses = detector.losses(torch.empty(10, 3, 257, 257), padded_targets(arrays, 10))
    assert float(torch.stack(list(losses.values())).sum().detach()) == pytest.approx(float(arrays["loss"]), rel=2e-7)


def test_detections_at_257_pixels_are_suppressed_before_they_are_clipped() -> None:
    """Above the original's threshold of 0.5; the original clips to the last pixel, we to the edge."""
    arrays = recorded("system_5_detections")
    detector = retinanet_257(noise(1, ANCHORS_257, CLASSES, seed=5) * 4 - 3.2, noise(1, ANCHORS_257, 4, seed=6) * 0.5)
    changes = {"score_threshold": 0.5, "topk_per_level": 10**5, "detections_per_image": 5000}
    detector.recipe = detector.recipe.update(changes)
    sizes = torch.tensor([[257, 257]])
    (found,) = detector.detect(torch.empty(1, 3, 257, 257), ImageSizes(sizes, sizes))
    assert len(found.scores) == arrays["count"]
    check_best(found.scores, found.boxes.clamp(max=256), found.labels, arrays, clip=256)


def check_best(
    scores: Tensor, boxes: Tensor, labels: Tensor, arrays: dict[str, NDArray[Any]], clip: float, atol: float = 1e-3
) -> None:
    """Compare the best detections with the recorded ones."""
    count = len(arrays["scores"])
    np.testing.assert_allclose(scores[:count].numpy(), arrays["scores"], atol=1e-6)
    np.testing.assert_allclose(boxes[:count].numpy(), arrays["boxes"].clip(0, clip), atol=atol)
    assert labels[:count].tolist() == arrays["labels"].tolist()


def test_all_convolutions_of_the_257_pixel_detector_start_small() -> None:
    """N(0, 0.01^2), in the pyramid too."""
    recipe = load(model="retinanet_257", dataset="voc2012").recipe
    torch.manual_seed(0)
    detector: Any = build_detector(without_weights(recipe), CLASSES, None)
    layers = [layer for part in (detector.backbone.fpn, detector.head) for layer in part.modules()]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 6 + 8
    for layer in convolutions:
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert float(detector.head.classification_head.cls_logits.bias.detach().mean()) == pytest.approx(-math.log(99))


def test_ssd_keeps_200_boxes_of_each_class_and_suppresses_them_before_clipping() -> None:
    arrays, recipe = recorded("system_2_detections"), load(model="ssd300", dataset="voc0712").recipe
    assert isinstance(recipe, SSDRecipe)
    detector: Any = SimpleNamespace(recipe=recipe)  # all that `select` needs
    maps = [(side, side) for side in (38, 19, 10, 5, 3, 1)]
    priors, sizes = DefaultBoxGenerator(**asdict(recipe.default_boxes))(maps, (300, 300)), torch.tensor([[300, 300]])
    logits, deltas = ssd_outputs(len(priors))
    (found,) = SSD.select(detector, logits, deltas, priors, ImageSizes(sizes, sizes))
    assert len(found.scores) == arrays["count"] > 200
    assert torch.bincount(found.labels, minlength=CLASSES).tolist() == arrays["per_class"].tolist()
    check_best(found.scores, found.boxes, found.labels, arrays, clip=300)


def ssd_outputs(priors: int) -> tuple[Tensor, Tensor]:
    """Logits with a few thousand scores above the threshold, and deltas."""
    logits = noise(1, priors, CLASSES + 1, seed=8) * 3
    logits[..., 0] += 5
    return logits, noise(1, priors, 4, seed=9)
