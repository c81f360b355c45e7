"""FCOS (Tian et al. 2019, arXiv:1904.01355): one box per location of a feature pyramid, without anchor sizes.

Letters: B images, A locations of all levels, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets
from detection.models.detector import BackboneDetector, Detections, matched_targets, pad_empty
from detection.models.heads import (
    ClassificationHead,
    DetectionHead,
    RegressionHead,
    flat_conv_tower,
    output_conv,
    over_levels,
)
from detection.models.postprocess import nms_and_rescale, topk_per_level
from detection.ops.anchors import PyramidAnchorGenerator
from detection.ops.box_coder import decode_edges, encode_edges
from detection.ops.losses import focal_loss, giou_loss, masked_sum
from detection.ops.matcher import match_centers
from detection.params.recipe import FCOSRecipe

TOWER_DEPTH = 4  # convolutions of each tower


class FCOSRegressionHead(RegressionHead):
    """Distances to a box's four edges and the centerness logit, on one tower."""

    def __init__(self, tower: nn.Module, channels: int) -> None:
        super().__init__(tower, channels, 1)
        self.bbox_ctrness = output_conv(channels, 1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Edge distances Tensor[B, A, 4], not negative, and centerness logits Tensor[B, A, 1]."""
        towers = [self.conv(level) for level in levels]
        return F.relu(over_levels(towers, self.bbox_reg, 4)), over_levels(towers, self.bbox_ctrness, 1)


class FCOS(BackboneDetector):
    """One-stage detector on the locations of a feature pyramid, with K sigmoid outputs per location.

    A location is represented by a square as wide as its stride, the anchor that edges are relative to.

    Args:
        recipe: Pyramid, sampling and thresholds.
        classes: K, background not counted.
        backbone: From images to the levels of the pyramid.
    """

    def __init__(self, recipe: FCOSRecipe, classes: int, backbone: nn.Module) -> None:
        super().__init__(recipe, backbone)
        self.recipe = recipe
        channels, first = recipe.fpn_channels, recipe.fpn_levels[0]
        levels = range(first, first + len(recipe.fpn_levels) + 2)
        self.anchors = PyramidAnchorGenerator([(2**level,) for level in levels], (1.0,))
        self.head = DetectionHead(
            ClassificationHead(flat_conv_tower(channels, TOWER_DEPTH), channels, 1, classes),
            FCOSRegressionHead(flat_conv_tower(channels, TOWER_DEPTH), channels),
        )

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: focal loss of the classes, GIoU loss of the boxes, centerness (eq. 3)."""
        targets = pad_empty(targets)
        logits, edges, centerness, anchors, counts = self._outputs(images)
        radius = self.recipe.center_sampling_radius
        matches = match_centers(targets.boxes, targets.mask, anchors, counts, radius)  # [B, A]
        positive = matches >= 0
        boxes, labels = matched_targets(targets, matches, anchors)
        class_loss = focal_loss(logits, labels, positive, torch.ones_like(positive))
        regression_loss = giou_loss(decode_edges(edges, anchors), boxes)
        target = _centerness(encode_edges(boxes, anchors))
        centerness_loss = F.binary_cross_entropy_with_logits(centerness[..., 0], target, reduction="none")
        count = distributed.normalizer(positive.sum())
        return {
            "class": class_loss.sum() / count,
            "box": masked_sum(regression_loss, positive) / count,
            "centerness": masked_sum(centerness_loss, positive) / count,
        }

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`; a score is the square root of class probability times centerness."""
        recipe = self.recipe
        logits, edges, centerness, anchors, counts = self._outputs(images)
        scores = (logits.sigmoid() * centerness.sigmoid()).sqrt()
        limit, threshold = recipe.topk_per_level, recipe.score_threshold
        inside = sizes if recipe.clip_before_nms else None
        select = topk_per_level(scores, edges, anchors, counts, decode_edges, inside, limit, threshold)
        return nms_and_rescale(select, sizes, recipe.nms_threshold, recipe.detections_per_image, logits.shape[2])

    def raw_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """See `BackboneDetector.raw_outputs`: `cls_logits` [B, A, K], `bbox_regression`, `bbox_ctrness`."""
        logits, (edges, centerness) = self.head(features)
        return {"cls_logits": logits, "bbox_regression": edges, "bbox_ctrness": centerness}

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Logits, edges, centerness, anchors [A, 4], and the number of locations per level."""
        features = self.features(images)
        logits, (edges, centerness) = self.head(features)
        anchors, counts = self.anchors.for_batch(features, images)
        # bf16 outputs under autocast are too coarse for losses and boxes
        return logits.float(), edges.float(), centerness.float(), anchors, counts


def _centerness(edges: Tensor) -> Tensor:
    """Centerness of edge distances Tensor[..., 4]: 1 in the box's center, 0 on its edge; Tensor[...]."""
    left, top, right, bottom = edges.unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()
