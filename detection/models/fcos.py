"""FCOS (Tian et al. 2019, arXiv:1904.01355): one box at each place of a pyramid, and no anchors to choose.

Letters: B pictures in a batch, A places of all levels, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection import distributed
from detection.models.detector import (
    BackboneDetector,
    Detections,
    ImageSizes,
    Targets,
    map_sizes,
    matched_boxes,
    matched_labels,
    pad_empty,
)
from detection.models.fpn import pyramid
from detection.models.heads import Head, class_output, group_norm, init_normal, output, over_levels
from detection.models.postprocess import nms_and_rescale, topk_per_level
from detection.ops.anchors import AnchorGrid
from detection.ops.box_coder import decode_edges, encode_edges
from detection.ops.losses import focal_loss, giou_loss, masked_sum
from detection.ops.matcher import match_centers
from detection.params.recipe import FCOSRecipe

DEPTH = 4  # blocks of a tower


def tower(channels: int) -> nn.Sequential:
    """Four times convolution, group normalisation and ReLU, in one row, as torchvision numbers them."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), group_norm(channels), nn.ReLU(inplace=True)]
    convolutions = nn.Sequential(*layers)
    init_normal(convolutions)
    return convolutions


class ClassTower(nn.Module):
    """K sigmoid outputs a place; names as in torchvision."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv, self.cls_logits, self.classes = tower(channels), class_output(channels, classes), classes

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Tensor[B, A, K]."""
        return over_levels(levels, self.conv, self.cls_logits, self.classes)


class BoxTower(nn.Module):
    """Distances of a box's four edges, and the logit of the centerness; names as in torchvision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = tower(channels)
        self.bbox_reg, self.bbox_ctrness = output(channels, 4), output(channels, 1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Tensor[B, A, 4], none negative, and Tensor[B, A, 1]."""
        towers = [self.conv(level) for level in levels]
        edges = over_levels(towers, nn.Identity(), self.bbox_reg, 4)
        return F.relu(edges), over_levels(towers, nn.Identity(), self.bbox_ctrness, 1)


class FCOS(BackboneDetector):
    """Places of a pyramid; K sigmoid outputs each, no background among them.

    Args:
        recipe: Its fields.
        classes: K.
        backbone: From pictures to the levels of the pyramid.
    """

    def __init__(self, recipe: FCOSRecipe, classes: int, backbone: nn.Module) -> None:
        super().__init__(backbone, recipe.image_mean, recipe.image_std)
        self.recipe = recipe
        first = recipe.fpn_levels[0]
        levels = range(first, first + len(recipe.fpn_levels) + 2)
        self.anchors = AnchorGrid([(2**level,) for level in levels], (1.0,))  # as wide as the strides
        self.head = Head(ClassTower(recipe.fpn_channels, classes), BoxTower(recipe.fpn_channels))

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: focal loss of the classes, GIoU of the boxes, and centerness (eq. 3)."""
        targets = pad_empty(targets)
        logits, edges, centerness, anchors, counts = self._outputs(images)
        radius = self.recipe.center_sampling_radius
        matches = match_centers(targets.boxes, targets.mask, anchors, counts, radius)
        positive = matches >= 0
        boxes = matched_boxes(targets, matches, anchors)
        class_loss = focal_loss(logits, matched_labels(targets, matches), positive, torch.ones_like(positive))
        overlap = giou_loss(decode_edges(edges, anchors), boxes)
        wanted = _centerness(encode_edges(boxes, anchors))
        centered = F.binary_cross_entropy_with_logits(centerness[..., 0], wanted, reduction="none")
        count = distributed.normalizer(positive.sum())
        return {
            "class": class_loss.sum() / count,
            "box": masked_sum(overlap, positive) / count,
            "centerness": masked_sum(centered, positive) / count,
        }

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`; a score is the root of class probability times centerness."""
        recipe = self.recipe
        logits, edges, centerness, anchors, counts = self._outputs(images)
        scores = (logits.sigmoid() * centerness.sigmoid()).sqrt()
        most, threshold = recipe.topk_per_level, recipe.score_threshold
        candidates = topk_per_level(scores, edges, anchors, counts, decode_edges, sizes, most, threshold)
        return nms_and_rescale(
            candidates, sizes, recipe.nms_threshold, recipe.detections_per_image, logits.shape[2]
        )

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `cls_logits`, `bbox_regression` and `bbox_ctrness`, [B, A, K], 4 and 1."""
        logits, (edges, centerness) = self.head(self.features(images))
        return {"cls_logits": logits, "bbox_regression": edges, "bbox_ctrness": centerness}

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Logits, edges, centerness, squares around the places [A, 4], and how many each level has."""
        features = self.features(images)
        logits, (edges, centerness) = self.head(features)
        maps = map_sizes(features)
        anchors = self.anchors(maps, (images.shape[2], images.shape[3]), images.device)
        # under autocast the towers answer in bf16, too coarse for losses and boxes
        return logits.float(), edges.float(), centerness.float(), anchors, self.anchors.counts(maps)


def _centerness(edges: Tensor) -> Tensor:
    """1 in a box's middle, 0 on its edge: Tensor[..., 4] to Tensor[...]."""
    left, top, right, bottom = edges.unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


def build(recipe: FCOSRecipe, classes: int, network: nn.Module) -> FCOS:
    """Build from a recipe, for `classes` classes, on a network whose weights are loaded."""
    return FCOS(recipe, classes, pyramid(recipe, network))
