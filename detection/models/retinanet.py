"""RetinaNet (Lin et al. 2017, arXiv:1708.02002), its second version, and the 257-pixel one.

Letters: B pictures in a batch, A anchors of all levels, K classes.
"""

from typing import Any

from torch import Tensor, nn

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
from detection.models.heads import Head, blocks, class_output, group_norm, output, over_levels
from detection.models.postprocess import nms_and_rescale, topk_per_level
from detection.ops.anchors import AnchorGrid
from detection.ops.box_coder import UNIT, decode
from detection.ops.losses import box_loss, focal_loss, masked_sum
from detection.ops.matcher import IGNORE, match
from detection.params.recipe import RetinaNetRecipe


class ClassTower(nn.Module):
    """K sigmoid outputs an anchor; names as in torchvision."""

    def __init__(self, channels: int, depth: int, norm: Any, per_place: int, classes: int) -> None:
        super().__init__()
        self.conv = blocks(channels, depth, norm)
        self.cls_logits = class_output(channels, per_place * classes)
        self.classes = classes

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Tensor[B, A, K]."""
        return over_levels(levels, self.conv, self.cls_logits, self.classes)


class BoxTower(nn.Module):
    """Four deltas an anchor; names as in torchvision."""

    def __init__(self, channels: int, depth: int, norm: Any, per_place: int) -> None:
        super().__init__()
        self.conv = blocks(channels, depth, norm)
        self.bbox_reg = output(channels, per_place * 4)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Tensor[B, A, 4]."""
        return over_levels(levels, self.conv, self.bbox_reg, 4)


class RetinaNet(BackboneDetector):
    """Anchors on a pyramid; K sigmoid outputs each, no background among them.

    Args:
        recipe: Its fields.
        classes: K.
        backbone: From pictures to the levels of the pyramid.
    """

    def __init__(self, recipe: RetinaNetRecipe, classes: int, backbone: nn.Module) -> None:
        super().__init__(backbone, recipe.image_mean, recipe.image_std)
        self.recipe = recipe
        self.anchors = AnchorGrid(
            recipe.anchors.sizes,
            recipe.anchors.aspect_ratios,
            strides=recipe.anchors.strides,
            offset=recipe.anchors.offset,
            rounded=recipe.anchors.round,
        )
        channels, depth, per_place = recipe.fpn_channels, recipe.head_convs, self.anchors.per_place[0]
        norm = group_norm if recipe.head_norm == "group" else None
        self.head = Head(
            ClassTower(channels, depth, norm, per_place, classes), BoxTower(channels, depth, norm, per_place)
        )

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: focal loss of the classes, and the recipe's loss of the boxes.

        Each is a picture's sum over its number of positives, then the mean of the pictures, or with the
        normalizer `batch` the batch's sum over the batch's number of positives.
        """
        recipe, targets = self.recipe, pad_empty(targets)
        logits, deltas, anchors, _ = self._outputs(images)
        matches = match(
            targets.boxes, targets.mask, anchors, recipe.fg_iou, recipe.bg_iou, recipe.low_quality_matches
        )
        positive = matches >= 0
        class_loss = focal_loss(logits, matched_labels(targets, matches), positive, matches != IGNORE)
        boxes = matched_boxes(targets, matches, anchors)
        deltas_loss = box_loss(recipe.box_loss, deltas, boxes, anchors, UNIT)
        count = positive.sum(1)  # [B]
        sums = {"class": class_loss.sum(1), "box": masked_sum(deltas_loss, positive, 1)}
        if recipe.loss_normalizer == "batch":
            return {name: value.sum() / distributed.normalizer(count.sum()) for name, value in sums.items()}
        return {name: (value / count.clamp(min=1)).mean() for name, value in sums.items()}

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        recipe = self.recipe
        logits, deltas, anchors, counts = self._outputs(images)
        most, threshold = recipe.topk_per_level, recipe.score_threshold
        candidates = topk_per_level(logits.sigmoid(), deltas, anchors, counts, decode, sizes, most, threshold)
        return nms_and_rescale(
            candidates,
            sizes,
            recipe.nms_threshold,
            recipe.detections_per_image,
            logits.shape[2],
            recipe.class_agnostic_nms,
        )

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `cls_logits` [B, A, K] and `bbox_regression` [B, A, 4]."""
        logits, deltas = self.head(self.features(images))
        return {"cls_logits": logits, "bbox_regression": deltas}

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Logits [B, A, K], deltas [B, A, 4], anchors [A, 4], and how many of them each level has."""
        features = self.features(images)
        logits, deltas = self.head(features)
        maps = map_sizes(features)
        anchors = self.anchors(maps, (images.shape[2], images.shape[3]), images.device)
        # under autocast the towers answer in bf16, too coarse for losses and boxes
        return logits.float(), deltas.float(), anchors, self.anchors.counts(maps)


def build(recipe: RetinaNetRecipe, classes: int, network: nn.Module) -> RetinaNet:
    """Build from a recipe, for `classes` classes, on a network whose weights are loaded."""
    return RetinaNet(recipe, classes, pyramid(recipe, network))
