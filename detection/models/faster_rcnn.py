"""Faster R-CNN over a feature pyramid (Ren et al. 2015, arXiv:1506.01497; Lin et al., 1612.03144)."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers

from detection.models.backbones import fpn
from detection.models.protocol import Detections, Sizes, Targets
from detection.models.roi_align import PyramidRoIAlign
from detection.models.torchvision_base import TorchvisionDetector, image_list, split_targets, to_original
from detection.params.recipe import FasterRCNNRecipe

POOLED = 7  # RoIAlign's output is 7x7


class FasterRCNN(TorchvisionDetector):
    """Two stages: the RPN proposes, the RoI head classifies and refines."""

    rpn: Any
    roi_heads: Any

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(net, mean, std)
        self.pool = PyramidRoIAlign(POOLED)

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: RPN objectness and box, RoI classification and box."""
        truth = split_targets(targets, first_label=1)
        features = self.features(images)
        inside = image_list(images, targets.sizes)
        proposals, losses = self._propose(features, inside, truth)
        with torch.no_grad():
            proposals, _, labels, regression = self.roi_heads.select_training_samples(proposals, truth)
        logits, deltas = self._classify(features, proposals, inside)
        losses["roi_class"], losses["roi_box"] = fastrcnn_loss(logits, deltas, labels, regression)
        return losses

    def detect(self, images: Tensor, sizes: Sizes) -> list[Detections]:
        """See `Detector.detect`."""
        features = self.features(images)
        inside = image_list(images, sizes.inside)
        proposals, _ = self._propose(features, inside, None)
        logits, deltas = self._classify(features, proposals, inside)
        boxes, scores, labels = self.roi_heads.postprocess_detections(
            logits, deltas, proposals, inside.image_sizes
        )
        found = [
            {"boxes": b, "scores": s, "labels": n} for b, s, n in zip(boxes, scores, labels, strict=True)
        ]
        return to_original(found, sizes, first_label=1)

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `objectness` [B, A], `deltas` [B, A, 4] of all A anchors, and the features."""
        features = self.features(images)
        objectness, deltas = concat_box_prediction_layers(*self.rpn.head(features))
        batch = images.shape[0]
        maps = {f"features_{i}": level for i, level in enumerate(features)}
        return {"objectness": objectness.view(batch, -1), "deltas": deltas.view(batch, -1, 4), **maps}

    def _propose(
        self, features: list[Tensor], images: ImageList, truth: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals per picture, and the RPN's losses where there is ground truth."""
        rpn = self.rpn
        per_level, deltas_per_level = rpn.head(features)
        anchors = rpn.anchor_generator(images, features)
        counts = [level[0].numel() for level in per_level]
        objectness, deltas = concat_box_prediction_layers(per_level, deltas_per_level)
        # under autocast the head answers in bf16, too coarse for box arithmetic
        objectness, deltas = objectness.float(), deltas.float()
        decoded = rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        proposals, _ = rpn.filter_proposals(decoded, objectness, images.image_sizes, counts)
        if truth is None:
            return proposals, {}
        labels, matched = rpn.assign_targets_to_anchors(anchors, truth)
        regression = rpn.box_coder.encode(matched, anchors)
        loss_objectness, loss_box = rpn.compute_loss(objectness, deltas, labels, regression)
        return proposals, {"rpn_objectness": loss_objectness, "rpn_box": loss_box}

    def _classify(
        self, features: list[Tensor], proposals: list[Tensor], images: ImageList
    ) -> tuple[Tensor, Tensor]:
        """Class logits [R, K + 1] and class-wise deltas [R, 4 (K + 1)] of all R proposals."""
        # the topmost level is for the RPN alone
        pooled = self.pool(features[:-1], proposals, images.tensors.shape[2])
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits.float(), deltas.float()


def build(recipe: FasterRCNNRecipe, classes: int, network: nn.Module) -> FasterRCNN:
    """Build from a recipe.

    Args:
        recipe: Its fields are torchvision's, which keeps to 7x7 RoIAlign on all levels but the pooled one.
        classes: Number of classes, background not counted.
        network: The backbone, its weights loaded.
    """
    body = fpn(
        network, recipe.backbone, recipe.trainable_layers, recipe.fpn_levels, recipe.fpn_channels, None
    )
    net = TorchvisionFasterRCNN(
        body,
        rpn_anchor_generator=AnchorGenerator(
            recipe.anchor_sizes, (recipe.aspect_ratios,) * len(recipe.anchor_sizes)
        ),
        rpn_pre_nms_top_n_train=recipe.rpn_pre_nms_train,
        rpn_pre_nms_top_n_test=recipe.rpn_pre_nms_test,
        rpn_post_nms_top_n_train=recipe.rpn_post_nms_train,
        rpn_post_nms_top_n_test=recipe.rpn_post_nms_test,
        rpn_nms_thresh=recipe.rpn_nms_threshold,
        rpn_fg_iou_thresh=recipe.rpn_fg_iou,
        rpn_bg_iou_thresh=recipe.rpn_bg_iou,
        rpn_batch_size_per_image=recipe.rpn_batch,
        rpn_positive_fraction=recipe.rpn_positive_fraction,
        rpn_score_thresh=recipe.rpn_score_threshold,
        box_head=TwoMLPHead(recipe.fpn_channels * POOLED**2, recipe.roi_hidden),
        box_predictor=FastRCNNPredictor(recipe.roi_hidden, classes + 1),
        box_fg_iou_thresh=recipe.roi_fg_iou,
        box_bg_iou_thresh=recipe.roi_bg_iou,
        box_batch_size_per_image=recipe.roi_batch,
        box_positive_fraction=recipe.roi_positive_fraction,
        box_score_thresh=recipe.score_threshold,
        box_nms_thresh=recipe.nms_threshold,
        box_detections_per_img=recipe.detections_per_image,
    )
    return FasterRCNN(net, recipe.image_mean, recipe.image_std)
