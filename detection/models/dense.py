"""RetinaNet (Lin et al. 2017, arXiv:1708.02002) and FCOS (Tian et al. 2019, arXiv:1904.01355).

Both answer at every place of a feature pyramid at once; they differ in their anchors, heads and assignment.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detection.models.backbones import fpn
from detection.models.protocol import Detections, Sizes, Targets
from detection.models.torchvision_base import TorchvisionDetector, image_list, split_targets, to_original
from detection.params.recipe import FCOSRecipe, RetinaNetRecipe

GROUPS = 32  # of group normalisation (Wu and He 2018, arXiv:1803.08494)
LOSS_NAMES = {"classification": "class", "bbox_regression": "box", "bbox_ctrness": "centerness"}


class DenseDetector(TorchvisionDetector):
    """One stage over a feature pyramid; K sigmoid outputs a place, no background among them."""

    head: Any
    anchor_generator: Any

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: classification and box, and FCOS's centerness."""
        truth = split_targets(targets, first_label=0)
        features = self.features(images)
        outputs = self._outputs(features)
        anchors = self.anchor_generator(image_list(images, targets.sizes), features)
        losses = self._assigned_losses(truth, outputs, anchors, features)
        return {LOSS_NAMES[name]: value for name, value in losses.items()}

    def detect(self, images: Tensor, sizes: Sizes) -> list[Detections]:
        """See `Detector.detect`."""
        features = self.features(images)
        outputs = self._outputs(features)
        inside = image_list(images, sizes.inside)
        anchors = self.anchor_generator(inside, features)
        counts = self._anchors_per_level(features, anchors)
        levels = {name: list(torch.split(value, counts, dim=1)) for name, value in outputs.items()}
        found = self.borrowed[0].postprocess_detections(
            levels, [list(torch.split(one, counts)) for one in anchors], inside.image_sizes
        )
        return to_original(found, sizes, first_label=0)

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `cls_logits` [B, A, K], `bbox_regression` [B, A, 4], and FCOS's centerness."""
        outputs: dict[str, Tensor] = self.head(self.features(images))
        return outputs

    def _outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        # under autocast the head answers in bf16, too coarse for losses and boxes
        return {name: value.float() for name, value in self.head(features).items()}

    def _assigned_losses(
        self,
        truth: list[dict[str, Tensor]],
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        features: list[Tensor],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.borrowed[0].compute_loss(truth, outputs, anchors)
        return losses

    @staticmethod
    def _anchors_per_level(features: list[Tensor], anchors: list[Tensor]) -> list[int]:
        places = [level.shape[2] * level.shape[3] for level in features]
        per_place = anchors[0].shape[0] // sum(places)
        return [count * per_place for count in places]


class FCOS(DenseDetector):
    """FCOS's assignment wants to know how many places each level has."""

    def _assigned_losses(
        self,
        truth: list[dict[str, Tensor]],
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        features: list[Tensor],
    ) -> dict[str, Tensor]:
        counts = self._anchors_per_level(features, anchors)
        losses: dict[str, Tensor] = self.borrowed[0].compute_loss(truth, outputs, anchors, counts)
        return losses


class FullPrecisionP6P7(LastLevelP6P7):  # type: ignore[misc]
    """P6 and P7, always in float32.

    On the CPU torch's bfloat16 convolutions give wild weight gradients for a stride of 2 on a 1x1 map (torch
    2.15), which P7 has for pictures of 64 pixels. These two levels cost next to nothing.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """See torchvision's `ExtraFPNBlock`."""
        with torch.autocast(p[0].device.type, enabled=False):
            p, c = [*p[:-1], p[-1].float()], [*c[:-1], c[-1].float()]
            levels: tuple[list[Tensor], list[str]] = super().forward(p, c, names)
        return levels


def _pyramid(recipe: RetinaNetRecipe | FCOSRecipe, network: nn.Module) -> nn.Module:
    channels = recipe.fpn_channels
    extra = FullPrecisionP6P7(channels, channels)
    return fpn(network, recipe.backbone, recipe.trainable_layers, recipe.fpn_levels, channels, extra)


def build_retinanet(recipe: RetinaNetRecipe, classes: int, network: nn.Module) -> DenseDetector:
    """Build RetinaNet from a recipe, for `classes` classes, on a backbone whose weights are loaded."""
    anchors = AnchorGenerator(recipe.anchor_sizes, (recipe.aspect_ratios,) * len(recipe.anchor_sizes))
    head = RetinaNetHead(
        recipe.fpn_channels,
        anchors.num_anchors_per_location()[0],
        classes,
        norm_layer=partial(nn.GroupNorm, GROUPS) if recipe.head_norm == "group" else None,
    )
    net = TorchvisionRetinaNet(
        _pyramid(recipe, network),
        classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=recipe.score_threshold,
        nms_thresh=recipe.nms_threshold,
        detections_per_img=recipe.detections_per_image,
        fg_iou_thresh=recipe.fg_iou,
        bg_iou_thresh=recipe.bg_iou,
        topk_candidates=recipe.topk_per_level,
    )
    return DenseDetector(net, recipe.image_mean, recipe.image_std)


def build_fcos(recipe: FCOSRecipe, classes: int, network: nn.Module) -> FCOS:
    """Build FCOS from a recipe, for `classes` classes, on a backbone whose weights are loaded."""
    net = TorchvisionFCOS(
        _pyramid(recipe, network),
        classes,
        center_sampling_radius=recipe.center_sampling_radius,
        score_thresh=recipe.score_threshold,
        nms_thresh=recipe.nms_threshold,
        detections_per_img=recipe.detections_per_image,
        topk_candidates=recipe.topk_per_level,
    )
    return FCOS(net, recipe.image_mean, recipe.image_std)
