"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497), on a pyramid (Lin et al., 1612.03144) or one map.

Letters: B images, A anchors of all maps.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead

from detection.models.detector import BackboneDetector, Detections, ImageSizes, Targets, pad_empty
from detection.models.fpn import c4_features, fpn
from detection.models.roi_head import RoIHead
from detection.models.rpn import RPN
from detection.ops.roi_align import PyramidRoIAlign, RoIPool
from detection.params.recipe import FasterRCNNRecipe

VGG_HIDDEN, VGG_POOL_SIZE = 4096, 7  # width and input size in cells of VGG16's fc6 and fc7


class FasterRCNN(BackboneDetector):
    """Two-stage detector: the RPN proposes boxes, the RoI head classifies and refines them.

    Parameters have torchvision's names, so that state dicts are exchangeable.

    Args:
        backbone: From images to a dict of feature maps, finest first.
        rpn: Region proposal network, on all maps.
        roi_heads: Second stage, on all maps but the topmost of a pyramid, which only the RPN uses.
        mean: Mean per RGB channel of pixels in 0..1.
        std: Standard deviation per RGB channel of pixels in 0..1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rpn: RPN,
        roi_heads: RoIHead,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__(backbone, mean, std)
        self.rpn, self.roi_heads = rpn, roi_heads

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: RPN objectness and box, RoI classification and box."""
        targets = pad_empty(targets)
        features = self.features(images)
        logits, deltas = self.rpn(features)
        anchors = self.rpn.anchors.for_batch(features, images)
        losses = self.rpn.losses(logits, deltas, anchors, targets)
        proposals, mask = self.rpn.propose(logits, deltas, anchors, features, targets.sizes)
        pooled = pooled_levels(features)
        return losses | self.roi_heads.losses(pooled, proposals, mask, targets, images.shape[2])

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        features = self.features(images)
        logits, deltas = self.rpn(features)
        anchors = self.rpn.anchors.for_batch(features, images)
        inside = sizes.resized.to(images.device, non_blocking=True)
        proposals, mask = self.rpn.propose(logits, deltas, anchors, features, inside)
        return self.roi_heads.detect(pooled_levels(features), proposals, mask, sizes, images.shape[2])

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `objectness` [B, A], `deltas` [B, A, 4] and the feature maps."""
        features = self.features(images)
        objectness, deltas = self.rpn(features)
        levels = {f"features_{i}": level for i, level in enumerate(features)}
        return {"objectness": objectness, "deltas": deltas, **levels}


def pooled_levels(features: list[Tensor]) -> list[Tensor]:
    """Levels that proposals are pooled from: all but the topmost of a pyramid."""
    return features[:-1] if len(features) > 1 else features


def build(recipe: FasterRCNNRecipe, classes: int, network: nn.Module) -> FasterRCNN:
    """Build from a recipe, for `classes` classes, on a network with its weights loaded."""
    body: Any
    layer4 = getattr(network, "layer4", None)  # `c4_features` removes it from the network
    name, trainable = recipe.backbone, recipe.trainable_layers
    if recipe.features == "fpn":
        norm = nn.BatchNorm2d if recipe.fpn_norm == "batch" else None
        body = fpn(network, name, trainable, recipe.fpn_levels, recipe.fpn_channels, norm=norm)
    else:
        body = c4_features(network, name, trainable)
    if recipe.roi.head == "layer4":
        assert layer4 is not None  # checked by the recipe
        head, width = _layer4_head(layer4), network.fc.in_features  # type: ignore[union-attr]
    else:
        head, width = _fc_head(recipe, body.out_channels, network), recipe.roi.hidden_channels
    predictor = FastRCNNPredictor(width, classes + 1)
    if recipe.roi.output_init == "normal":
        nn.init.normal_(predictor.cls_score.weight, std=0.01)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
        nn.init.zeros_(predictor.cls_score.bias)
        nn.init.zeros_(predictor.bbox_pred.bias)
    pool = {"roi_align": PyramidRoIAlign, "roi_pool": RoIPool}[recipe.roi.pooling](recipe.roi.pool_size)
    roi_head = RoIHead(recipe, pool, head, predictor, classes)
    return FasterRCNN(body, RPN(recipe, body.out_channels), roi_head, recipe.image_mean, recipe.image_std)


def _fc_head(recipe: FasterRCNNRecipe, channels: int, network: Any) -> nn.Module:
    """Two fully connected layers, VGG16's own if they fit; or four convolutions and one such layer."""
    side, hidden = recipe.roi.pool_size, recipe.roi.hidden_channels
    if recipe.roi.head == "conv_fc":
        conv_head: nn.Module = FastRCNNConvFCHead(
            (channels, side, side), [channels] * 4, [hidden], norm_layer=nn.BatchNorm2d
        )
        return conv_head
    head: nn.Module = TwoMLPHead(channels * side**2, hidden)
    if recipe.backbone == "vgg16" and (side, hidden) == (VGG_POOL_SIZE, VGG_HIDDEN):
        head.fc6, head.fc7 = network.classifier[0], network.classifier[3]
    return head


def _layer4_head(layer4: nn.Module) -> nn.Module:
    """ResNet's last stage and the mean over its cells, for one map of stride 16 (He et al., 1512.03385)."""
    return nn.Sequential(
        OrderedDict([("layer4", layer4), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())])
    )
