"""Two-stage detectors: published counts, robustness, export."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detection.data.loading.batch import ImageSizes, Targets
from detection.models.build import build_detector, without_weights
from detection.models.faster_rcnn import RPN, FasterRCNN
from detection.params import FasterRCNNRecipe, load

SIDE = 64


def recipe_of(model: str, dataset: str, **changes: Any) -> FasterRCNNRecipe:
    recipe = load(model=model, dataset=dataset).recipe
    assert isinstance(recipe, FasterRCNNRecipe)
    return recipe.update(changes)


def small(classes: int = 3, **changes: Any) -> FasterRCNN:
    torch.manual_seed(0)
    smaller: dict[str, Any] = {"fpn_channels": 16, "roi.hidden_channels": 32, "rpn.post_nms_top_n.test": 20}
    recipe = without_weights(recipe_of("fasterrcnn_resnet18", "shapes", **smaller | changes))
    detector = build_detector(recipe, classes, None)
    assert isinstance(detector, FasterRCNN)
    return detector


def targets_of(boxes: Tensor, mask: Tensor | None = None) -> Targets:
    """Ground truth [B, M, 4], of class 0."""
    mask = torch.ones(boxes.shape[:2], dtype=torch.bool) if mask is None else mask
    sizes = torch.tensor([[SIDE, SIDE]] * len(boxes))
    return Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), mask, sizes)


def test_resnet50_c4_has_as_many_parameters_as_torchvisions_equivalent() -> None:
    recipe = recipe_of("fasterrcnn_resnet50_c4", "voc2007", **{"bn": "frozen", "rpn.channels": None})
    assert sum(p.numel() for p in build_detector(recipe, 20, None).parameters()) == 33_154_390


@pytest.mark.parametrize(
    ("model", "cells", "count"), [("fasterrcnn_resnet50_c4", 38, 12_996), ("fasterrcnn_vgg16_600", 37, 12_321)]
)
def test_600_pixels_have_the_published_number_of_anchors(model: str, cells: int, count: int) -> None:
    anchors = RPN(recipe_of(model, "voc2007"), 8).anchors([(cells, cells)], (600, 600))
    assert anchors.shape == (count, 4)
    assert anchors[4].tolist() == [-128, -128, 128, 128]
    assert anchors[-5].tolist() == [16 * (cells - 1) + x for x in (-128, -128, 128, 128)]


def test_only_anchors_inside_the_image_are_sampled() -> None:
    sizes = ((12,), (200,), (200,), (200,), (200,))
    changes: dict[str, Any] = {"rpn.inside_anchors_only": True, "anchors.sizes": sizes}
    detector = small(**changes)
    images, targets = torch.rand(1, 3, SIDE, SIDE), targets_of(torch.tensor([[[10.0, 10, 60, 60]]]))
    maps = detector.features(images)
    logits, deltas = (out.detach().requires_grad_() for out in detector.rpn(maps))
    anchors, _ = detector.rpn.anchors.for_batch(maps, images)
    detector.rpn.losses(logits, deltas, anchors, targets)["rpn_objectness"].backward()
    assert logits.grad is not None
    sampled = anchors[logits.grad[0] != 0]
    assert len(sampled) > 0
    assert (sampled >= 0).all()
    assert (sampled <= SIDE).all()


def objects(case: str) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 500, 2, generator=generator) * 40
    many = torch.cat([corner, corner + 2 + torch.rand(2, 500, 2, generator=generator) * 20], dim=2)
    return {
        "M of 0": (torch.zeros(2, 0, 4), None),
        "no objects": (many[:, :3], torch.zeros(2, 3, dtype=torch.bool)),
        "one empty image": (many[:, :3], torch.tensor([[True] * 3, [False] * 3])),
        "500 objects": (many, None),
        "duplicates": (many[:, :1].expand(2, 6, 4), None),
        "a point": (torch.tensor([[[5.0, 5, 5, 5], [9, 9, 40, 40]]] * 2), None),
    }[case]


@pytest.mark.parametrize("normalizer", ["sampled", "positives"])
@pytest.mark.parametrize("case", ["M of 0", "no objects", "one empty image", "500 objects", "duplicates", "a point"])
def test_any_ground_truth_gives_finite_losses_and_gradients(case: str, normalizer: str) -> None:
    classes = 1 if case == "duplicates" else 3
    detector = small(classes, **{f"{stage}.box_loss_normalizer": normalizer for stage in ("rpn", "roi")}).train()
    boxes, mask = objects(case)
    losses = detector.losses(torch.rand(2, 3, SIDE, SIDE), targets_of(boxes, mask))
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
    if case in ("M of 0", "no objects"):
        assert losses["rpn_box"] == losses["roi_box"] == 0
    else:
        assert losses["rpn_box"] > 0
        assert losses["roi_box"] > 0


def test_an_image_of_nan_has_no_proposals_and_does_not_affect_others() -> None:
    """NaN boxes have no pyramid level: unmasked, they would misplace the pooled features of other boxes."""
    detector, images = small().eval(), torch.rand(2, 3, SIDE, SIDE)
    images[0] = torch.nan
    maps = detector.features(images)
    logits, deltas = detector.rpn(maps)
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    anchors, counts = detector.rpn.anchors.for_batch(maps, images)
    proposals, mask = detector.rpn.propose(logits, deltas, anchors, counts, sizes)
    assert mask.any(dim=1).tolist() == [False, True]
    assert proposals[~mask].abs().sum() == 0
    empty, detections = detector.detect(images, ImageSizes(sizes, sizes))
    (alone,) = detector.detect(images[1:], ImageSizes(sizes[1:], sizes[1:]))
    assert len(empty.scores) == 0
    assert len(detections.scores) == len(alone.scores) > 0
    torch.testing.assert_close(detections.boxes, alone.boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("model", ["fasterrcnn", "fasterrcnn_resnet50_c4", "fasterrcnn_vgg16"])
def test_a_batch_without_proposals_has_no_detections(model: str) -> None:
    """`fasterrcnn_mobilenet_320` proposes nothing on an image whose objectness is below 0.05."""
    recipe = without_weights(recipe_of(model, "voc2007", **{"rpn.score_threshold": 1.0}))
    detector = build_detector(recipe, 3, None).eval()
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    with torch.inference_mode():
        found = detector.detect(torch.rand(2, 3, SIDE, SIDE), ImageSizes(sizes, sizes))
    assert [one.boxes.shape for one in found] == [(0, 4)] * 2
    detector.train()
    losses = detector.losses(torch.rand(2, 3, SIDE, SIDE), targets_of(torch.tensor([[[10.0, 10, 60, 60]]] * 2)))
    assert torch.stack(list(losses.values())).isfinite().all()


def test_core_is_exported_with_a_batch_of_any_size() -> None:
    detector = small().eval()

    class Core(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return self.detector.core(images)

    batch = torch.export.Dim("batch", min=1, max=16)
    exported = torch.export.export(
        Core().eval(), (torch.rand(2, 3, SIDE, SIDE),), dynamic_shapes={"images": {0: batch}}
    ).module()
    for count in (1, 5):
        images = torch.rand(count, 3, SIDE, SIDE)
        with torch.no_grad():
            for name, value in detector.core(images).items():
                torch.testing.assert_close(exported(images)[name], value)
