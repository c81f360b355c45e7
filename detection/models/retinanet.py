"""RetinaNet (Lin et al. 2017, arXiv:1708.02002), its second version, and the 257-pixel one.

Letters: B images, A anchors of all levels, K classes.
"""

from dataclasses import asdict

from torch import Tensor, nn

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets
from detection.models.detector import BackboneDetector, Detections, by_size, matched_targets, pad_empty
from detection.models.heads import GROUP_NORM, ClassificationHead, DetectionHead, RegressionHead, conv_tower
from detection.models.postprocess import nms_and_rescale, topk_per_level
from detection.ops.anchors import PyramidAnchorGenerator
from detection.ops.box_coder import decode
from detection.ops.losses import box_loss, focal_loss
from detection.ops.matcher import IGNORE, match
from detection.params.recipe import RetinaNetRecipe


class RetinaNet(BackboneDetector):
    """One-stage detector on anchors of a feature pyramid, with K sigmoid outputs per anchor.

    Args:
        recipe: Anchors, thresholds and losses.
        classes: K, background not counted.
        backbone: From images to the levels of the pyramid.
    """

    def __init__(self, recipe: RetinaNetRecipe, classes: int, backbone: nn.Module) -> None:
        super().__init__(recipe, backbone)
        self.recipe = recipe
        self.anchors = PyramidAnchorGenerator(**asdict(recipe.anchors))
        channels, depth, per_cell = recipe.fpn_channels, recipe.head_convs, self.anchors.anchors_per_cell[0]
        norm = GROUP_NORM if recipe.head_norm == "group" else None
        self.head = DetectionHead(
            ClassificationHead(conv_tower(channels, depth, norm), channels, per_cell, classes),
            RegressionHead(conv_tower(channels, depth, norm), channels, per_cell),
        )

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: focal loss of the classes, and the recipe's box loss.

        Each is an image's sum divided by its number of positives, averaged over the images; or with the
        normalizer `batch` the batch's sum divided by the batch's number of positives.
        """
        recipe, targets = self.recipe, pad_empty(targets)
        logits, deltas, anchors, _ = self._outputs(images)
        matches = match(
            targets.boxes, targets.mask, anchors, recipe.fg_iou, recipe.bg_iou, recipe.low_quality_matches
        )  # [B, A]
        positive = matches >= 0
        boxes, labels = matched_targets(targets, matches, anchors)
        class_loss = focal_loss(logits, labels, positive, matches != IGNORE)
        regression_loss = box_loss(recipe.box_loss, deltas, boxes, anchors, positive)
        sums = {"class": class_loss.sum(1), "box": regression_loss.sum(1)}  # [B]
        count = positive.sum(1)
        if recipe.loss_normalizer == "batch":
            return {name: value.sum() / distributed.normalizer(count.sum()) for name, value in sums.items()}
        return {name: (value / count.clamp(min=1)).mean() for name, value in sums.items()}

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        unpadded = self.recipe.anchors.strides is not None
        return by_size(self._detect, images, sizes) if unpadded else self._detect(images, sizes)

    def _detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        recipe = self.recipe
        logits, deltas, anchors, counts = self._outputs(images)
        limit, threshold = recipe.topk_per_level, recipe.score_threshold
        inside = sizes if recipe.clip_before_nms else None
        select = topk_per_level(logits.sigmoid(), deltas, anchors, counts, decode, inside, limit, threshold)
        return nms_and_rescale(
            select, sizes, recipe.nms_threshold, recipe.detections_per_image, logits.shape[2], recipe.class_agnostic_nms
        )

    def raw_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """See `BackboneDetector.raw_outputs`: `cls_logits` [B, A, K] and `bbox_regression` [B, A, 4]."""
        logits, deltas = self.head(features)
        return {"cls_logits": logits, "bbox_regression": deltas}

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Logits [B, A, K], deltas [B, A, 4], anchors [A, 4], and the number of anchors per level."""
        features = self.features(images)
        logits, deltas = self.head(features)
        # bf16 outputs under autocast are too coarse for losses and boxes
        return logits.float(), deltas.float(), *self.anchors.for_batch(features, images)
