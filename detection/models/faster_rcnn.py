"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497), on a pyramid (Lin et al., 1612.03144) or one map."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead

from detection.data.loading.batch import Targets
from detection.models.backbones import c4_features, fpn
from detection.models.detector import BackboneDetector, Detections, ImageSizes, pad_empty
from detection.models.roi_head import RoIHead
from detection.models.rpn import RPN
from detection.ops.roi_align import PyramidRoIAlign, RoIPool
from detection.params.recipe import FasterRCNNRecipe

VGG_HIDDEN, VGG_POOLED = 4096, 7  # of VGG16's fc6 and fc7


class FasterRCNN(BackboneDetector):
    """Two stages: the RPN proposes, the RoI head classifies and refines.

    Parameters stand under torchvision's own names, so that state dicts go both ways.

    Args:
        backbone: From images to a dict of feature maps, finest first.
        rpn: On all maps.
        roi_heads: On all maps but a pyramid's topmost, which is for the RPN alone.
        mean: Per RGB channel, of pixels in 0..1.
        std: Per RGB channel, of pixels in 0..1.
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
        maps = self.features(images)
        logits, deltas = self.rpn(maps)
        anchors = self.rpn.anchors_of(maps, images)
        losses = self.rpn.losses(logits, deltas, anchors, targets)
        proposals, mask = self.rpn.propose(logits, deltas, anchors, maps, targets.sizes)
        return losses | self.roi_heads.losses(_pooled(maps), proposals, mask, targets, images.shape[2])

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        maps = self.features(images)
        logits, deltas = self.rpn(maps)
        anchors = self.rpn.anchors_of(maps, images)
        inside = sizes.resized.to(images.device, non_blocking=True)
        proposals, mask = self.rpn.propose(logits, deltas, anchors, maps, inside)
        return self.roi_heads.detect(_pooled(maps), proposals, mask, sizes, images.shape[2])

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `objectness` [B, A], `deltas` [B, A, 4] of all A anchors, and the features."""
        maps = self.features(images)
        objectness, deltas = self.rpn(maps)
        features = {f"features_{i}": one for i, one in enumerate(maps)}
        return {"objectness": objectness, "deltas": deltas, **features}


def _pooled(maps: list[Tensor]) -> list[Tensor]:
    return maps[:-1] if len(maps) > 1 else maps


def build(recipe: FasterRCNNRecipe, classes: int, network: nn.Module) -> FasterRCNN:
    """Build from a recipe, for `classes` classes (background not counted), on a loaded backbone."""
    body: Any
    top = getattr(network, "layer4", None)  # the one map's body drops it
    if recipe.features == "fpn":
        body = fpn(
            network,
            recipe.backbone,
            recipe.trainable_layers,
            recipe.fpn_levels,
            recipe.fpn_channels,
            None,
            nn.BatchNorm2d if recipe.fpn_norm == "batch" else None,
        )
    else:
        body = c4_features(network, recipe.backbone, recipe.trainable_layers)
    if recipe.roi.head == "layer4":
        assert top is not None  # a rule of the recipe
        head, width = _layer4_head(top), network.fc.in_features  # type: ignore[union-attr]
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
    """Two fully connected layers, VGG16's own where they fit; or four convolutions and one."""
    side, hidden = recipe.roi.pool_size, recipe.roi.hidden_channels
    if recipe.roi.head == "conv_fc":
        convolved: nn.Module = FastRCNNConvFCHead(
            (channels, side, side), [channels] * 4, [hidden], norm_layer=nn.BatchNorm2d
        )
        return convolved
    head: nn.Module = TwoMLPHead(channels * side**2, hidden)
    if recipe.backbone == "vgg16" and (side, hidden) == (VGG_POOLED, VGG_HIDDEN):
        head.fc6, head.fc7 = network.classifier[0], network.classifier[3]
    return head


def _layer4_head(layer4: nn.Module) -> nn.Module:
    """ResNet's last stage and the mean over its cells, as in Faster R-CNN on C4 (He et al. 1512.03385)."""
    return nn.Sequential(
        OrderedDict([("layer4", layer4), ("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())])
    )
