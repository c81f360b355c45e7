"""Fit of anchors to objects: exact IoU, and suggested sizes."""

from dataclasses import replace

import numpy as np
import pytest

from detection.data.loading.index import Index, Record, pack
from detection.doctor.anchor_fit import FIT_IOU, AnchorFit, AnchorRecipe, cluster, k_means
from detection.ops.boxes import iou
from detection.params import FasterRCNNRecipe, RetinaNetRecipe, SSDRecipe
from detection.params.recipe import Anchors, DefaultBoxes, RetinaNetAnchors, RoI

RETINANET = RetinaNetRecipe(
    architecture="retinanet", backbone="resnet18", image_size=96, max_size=160, batch_size=1, fpn_channels=8,
    epochs=1, bn="live",
    anchors=RetinaNetAnchors(sizes=((16, 20), (32, 40), (64, 80), (128, 160), (256, 320))),
)  # fmt: skip
FASTER = FasterRCNNRecipe(
    architecture="fasterrcnn", backbone="resnet18", image_size=96, max_size=160, batch_size=1, fpn_channels=8,
    epochs=1, bn="live",
    anchors=Anchors(sizes=((12,), (24,), (48,), (72,), (96,))), roi=RoI(hidden_channels=8),
)  # fmt: skip
ONE_MAP = replace(
    FASTER, features="c4", anchors=Anchors(sizes=((16, 32, 64),), strides=(16,), offset=0.5)
)  # fmt: skip
LITE = SSDRecipe(
    architecture="ssdlite", backbone="mobilenet_v3_small", resize="stretch", image_size=320, batch_size=1,
    fixed_size=True, epochs=1, bn="live",
    default_boxes=DefaultBoxes(
        scales=(0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), aspect_ratios=((2, 3),) * 6, clip_centers=True
    ),
)  # fmt: skip


def split(sides: tuple[float, float], seed: int = 0) -> Index:
    """Images of three sizes, each with a crowd and a difficult object."""
    rng = np.random.default_rng(seed)
    records = []
    for number, (height, width) in enumerate([(96, 96), (120, 200), (200, 120), (96, 97)]):
        count = 12
        size = np.exp(rng.uniform(np.log(sides[0]), np.log(sides[1]), (count, 2)))
        low = rng.uniform(0, 1, (count, 2)) * np.maximum([width, height] - size, 1)
        boxes = np.concatenate([low, np.minimum(low + size, [width, height])], axis=1).astype(np.float32)
        flags = np.zeros((2, count), dtype=bool)
        flags[0, 0] = flags[1, 1] = True
        records.append(
            Record(
                file=f"{number}.png", id=str(number), height=height, width=width, boxes=boxes,
                labels=rng.integers(0, 2, count), difficult=flags[0], crowd=flags[1],
                areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
            )
        )  # fmt: skip
    return pack(records)


@pytest.mark.parametrize(
    "recipe", [RETINANET, FASTER, ONE_MAP, ONE_MAP.update({"rpn.inside_anchors_only": True}), LITE], ids=range(5)
)
def test_the_best_iou_equals_that_over_all_anchors(recipe: AnchorRecipe) -> None:
    fit = AnchorFit(recipe, split((6, 90)), 2)
    own = fit.coverage()
    assert len(own.best_iou) == 4 * 10, "without the crowd and the difficult object"
    for group in fit.groups:
        anchors = fit.anchors(group.maps, group.padded).numpy()
        if isinstance(recipe, FasterRCNNRecipe) and recipe.rpn.inside_anchors_only:
            height, width = group.resized
            inside = (anchors >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
            anchors = anchors[inside]
        overlap = iou(group.boxes.astype(np.float32), anchors)
        assert own.best_iou[group.rows] == pytest.approx(overlap.max(1), abs=1e-5)
    assert sum(shape.matches > 0 for shape in own.shapes) > 0
    total = sum(len(group.rows) for group in fit.groups)
    assert total == len(own.best_iou)


def test_smaller_anchors_are_suggested_for_small_objects() -> None:
    """Objects of 9 to 13 pixels have an IoU of at most 0.1 with a square of 48."""
    large = FASTER.update({"anchors.sizes": ((48,), (72,), (96,), (128,), (160,))})
    fit = AnchorFit(large, split((9, 13)), 2)
    own = fit.coverage()
    assert own.fraction(FIT_IOU) == 0
    assert own.class_means()[0] == 0
    assert not any(shape.matches for shape in own.shapes)
    suggestion = fit.suggestion(own)
    assert suggestion is not None
    recipe, coverage, method = suggestion
    assert isinstance(recipe, FasterRCNNRecipe)
    assert coverage.fraction(FIT_IOU) > 0.8
    assert 6 < recipe.anchors.sizes[0][0] < 16
    assert method


def test_no_suggestion_for_anchors_that_fit() -> None:
    index = split((20, 60))
    own = AnchorFit(replace(RETINANET, fg_iou=0.4), index, 2).coverage()
    assert own.fraction(FIT_IOU) > 0.95
    assert AnchorFit(RETINANET, index, 2).suggestion(own) is None


def test_k_means_finds_clusters() -> None:
    rng = np.random.default_rng(0)
    sides = np.concatenate([center * np.exp(rng.normal(0, 0.05, 200)) for center in (8.0, 30, 100)])
    assert k_means(sides, 3) == pytest.approx([8, 30, 100], rel=0.02)
    assert cluster(sides, [[16, 20], [32, 40], [64, 96]]) == [
        [pytest.approx(first, rel=0.02), pytest.approx(first * ratio, rel=0.02)]
        for first, ratio in ((8, 1.25), (30, 1.25), (100, 1.5))
    ]
    assert cluster(sides, [[16, 32, 64]] * 2) == [pytest.approx([8, 30, 100], rel=0.02)] * 2
