"""Two-stage detectors: published counts, resilience, export."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detection.data.loading.batch import ImageSizes, Targets
from detection.models.build import build_detector, without_weights
from detection.models.faster_rcnn import FasterRCNN
from detection.models.rpn import RPN, box_loss
from detection.ops import nms
from detection.params import FasterRCNNRecipe, load

SIDE = 64


def recipe_of(model: str, dataset: str, **changes: Any) -> FasterRCNNRecipe:
    recipe = load(model=model, dataset=dataset).recipe
    assert isinstance(recipe, FasterRCNNRecipe)
    return recipe.update(changes)


def small(classes: int = 3, **changes: Any) -> FasterRCNN:
    torch.manual_seed(0)
    few: dict[str, Any] = {"fpn_channels": 16, "roi.hidden_channels": 32, "rpn.post_nms_top_n.test": 20}
    recipe = without_weights(recipe_of("fasterrcnn_resnet18", "shapes", **few | changes))
    detector = build_detector(recipe, classes, None)
    assert isinstance(detector, FasterRCNN)
    return detector


def targets_of(boxes: Tensor, mask: Tensor | None = None) -> Targets:
    """Ground truth [B, M, 4], of class 0."""
    mask = torch.ones(boxes.shape[:2], dtype=torch.bool) if mask is None else mask
    sizes = torch.tensor([[SIDE, SIDE]] * len(boxes))
    return Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), mask, sizes)


def test_resnet50_c4_has_the_parameters_of_torchvisions_equivalent() -> None:
    recipe = recipe_of("fasterrcnn_resnet50_c4", "voc2007", **{"bn": "frozen", "rpn.channels": None})
    assert sum(p.numel() for p in build_detector(recipe, 20, None).parameters()) == 33_154_390


@pytest.mark.parametrize(
    ("model", "cells", "count"),
    [("fasterrcnn_resnet50_c4", 38, 12_996), ("fasterrcnn_vgg16_600", 37, 12_321)],
)
def test_anchors_of_600_pixels_are_as_many_as_published(model: str, cells: int, count: int) -> None:
    anchors = RPN(recipe_of(model, "voc2007"), 8).anchors([(cells, cells)], (600, 600))
    assert anchors.shape == (count, 4)
    assert anchors[4].tolist() == [-128, -128, 128, 128]
    assert anchors[-5].tolist() == [16 * (cells - 1) + x for x in (-128, -128, 128, 128)]


def test_only_anchors_inside_the_picture_are_sampled() -> None:
    detector = small(
        **{
            "rpn.inside_anchors_only": True,
            "anchors.sizes": ((12,), (200,), (200,), (200,), (200,)),
        }
    )
    images, targets = torch.rand(1, 3, SIDE, SIDE), targets_of(torch.tensor([[[10.0, 10, 60, 60]]]))
    maps = detector.features(images)
    logits, deltas = (out.detach().requires_grad_() for out in detector.rpn(maps))
    anchors = detector.rpn.anchors_of(maps, images)
    detector.rpn.losses(logits, deltas, anchors, targets)["rpn_objectness"].backward()
    assert logits.grad is not None
    seen = anchors[logits.grad[0] != 0]
    assert len(seen) > 0
    assert (seen >= 0).all()
    assert (seen <= SIDE).all()


def objects(case: str) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 500, 2, generator=generator) * 40
    many = torch.cat([corner, corner + 2 + torch.rand(2, 500, 2, generator=generator) * 20], dim=2)
    return {
        "no room": (torch.zeros(2, 0, 4), None),
        "no objects": (many[:, :3], torch.zeros(2, 3, dtype=torch.bool)),
        "one picture without": (many[:, :3], torch.tensor([[True] * 3, [False] * 3])),
        "500 objects": (many, None),
        "duplicates": (many[:, :1].expand(2, 6, 4), None),
        "a point": (torch.tensor([[[5.0, 5, 5, 5], [9, 9, 40, 40]]] * 2), None),
    }[case]


@pytest.mark.parametrize("normalizer", ["sampled", "positives"])
@pytest.mark.parametrize(
    "case",
    ["no room", "no objects", "one picture without", "500 objects", "duplicates", "a point"],
)
def test_any_ground_truth_gives_finite_losses_and_gradients(case: str, normalizer: str) -> None:
    classes = 1 if case == "duplicates" else 3
    detector = small(
        classes, **{f"{stage}.box_loss_normalizer": normalizer for stage in ("rpn", "roi")}
    ).train()
    boxes, mask = objects(case)
    losses = detector.losses(torch.rand(2, 3, SIDE, SIDE), targets_of(boxes, mask))
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
    if case in ("no room", "no objects"):
        assert losses["rpn_box"] == losses["roi_box"] == 0
    else:
        assert losses["rpn_box"] > 0
        assert losses["roi_box"] > 0


def test_a_picture_without_one_finite_number_has_no_proposals_and_harms_no_other() -> None:
    """Boxes that are no numbers fit no level of the pyramid: others' features would move to their places."""
    detector, images = small().eval(), torch.rand(2, 3, SIDE, SIDE)
    images[0] = torch.nan
    maps = detector.features(images)
    logits, deltas = detector.rpn(maps)
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    proposals, mask = detector.rpn.propose(logits, deltas, detector.rpn.anchors_of(maps, images), maps, sizes)
    assert mask.any(dim=1).tolist() == [False, True]
    assert proposals[~mask].abs().sum() == 0
    nothing, found = detector.detect(images, ImageSizes(sizes, sizes))
    (alone,) = detector.detect(images[1:], ImageSizes(sizes[1:], sizes[1:]))
    assert len(nothing.scores) == 0
    assert len(found.scores) == len(alone.scores) > 0
    torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-3, rtol=0)


def test_box_loss_counts_only_positives_whatever_the_others_hold() -> None:
    deltas = torch.zeros(2, 3, 4, requires_grad=True)
    wanted = torch.full((2, 3, 4), torch.nan)
    wanted[0, 0] = 3.0
    positive = torch.tensor([[True, False, False], [False] * 3])
    sampled = torch.tensor([[True] * 3, [True, True, False]])
    loss = box_loss(deltas, wanted, positive, sampled, beta=1.0, normaliser="sampled")
    assert float(loss.detach()) == pytest.approx(4 * 2.5 / 5)
    loss.backward()
    assert deltas.grad is not None
    assert torch.equal(deltas.grad[0, 0], torch.full((4,), -1 / 5))
    assert float(deltas.grad.abs().sum()) == pytest.approx(4 / 5)
    per_picture = box_loss(deltas, wanted, positive, sampled, beta=1.0, normaliser="positives")
    assert float(per_picture.detach()) == pytest.approx(4 * 2.5 / 1 / 2)


@pytest.mark.parametrize("most", [1, 250, 2**15])  # boxes of a call: a picture, two, all
@pytest.mark.parametrize("grouped_nms", [nms._group_by_group, nms._on_tiles])  # a CPU's, and a GPU's
def test_grouped_nms_is_torchvisions_group_by_group(
    most: int, grouped_nms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms, "MOST", most)
    generator = torch.Generator().manual_seed(most)
    corner = torch.rand(5, 100, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 1 + torch.rand(5, 100, 2, generator=generator) * 40], dim=2)
    scores = torch.rand(5, 100, generator=generator)
    group = torch.randint(0, 3, (5, 100), generator=generator)
    valid = torch.rand(5, 100, generator=generator) > 0.2
    boxes[~valid] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])  # must move no other box
    kept = grouped_nms(boxes, scores, group, 4, valid, 0.5)
    for picture in range(5):
        rows = valid[picture].nonzero()[:, 0]
        one = boxes[picture, rows], scores[picture, rows], group[picture, rows]
        expected = torch.zeros(100, dtype=torch.bool)
        expected[rows[batched_nms(*one, 0.5)]] = True
        assert torch.equal(kept[picture], expected)


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
