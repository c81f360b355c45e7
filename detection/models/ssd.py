"""SSD300 on VGG16 (Liu et al. 2015, arXiv:1512.02325) and SSDlite on MobileNetV3 (arXiv:1905.02244)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssd import _vgg_extractor as vgg_extractor
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.detection.ssdlite import _mobilenet_extractor as mobilenet_extractor
from torchvision.ops import box_iou

from detection.models.protocol import Detections, Sizes, Targets
from detection.models.torchvision_base import TorchvisionDetector, image_list, split_targets, to_original
from detection.params.recipe import SSDRecipe

LITE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # MobileNetV3's own, in backbone and heads


class SSD(TorchvisionDetector):
    """Priors on feature maps of falling size; softmax over K + 1 classes, 0 the background."""

    head: Any
    anchor_generator: Any

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: MultiBox classification and box (Liu et al., section 2.2)."""
        truth = split_targets(targets, first_label=1)
        outputs, priors = self._outputs(images, targets.sizes)
        matches = [self._match(one["boxes"], boxes) for one, boxes in zip(truth, priors, strict=True)]
        losses = self.borrowed[0].compute_loss(truth, outputs, priors, matches)
        return {"class": losses["classification"], "box": losses["bbox_regression"]}

    def detect(self, images: Tensor, sizes: Sizes) -> list[Detections]:
        """See `Detector.detect`."""
        outputs, priors = self._outputs(images, sizes.inside)
        inside = image_list(images, sizes.inside)
        found = self.borrowed[0].postprocess_detections(outputs, priors, inside.image_sizes)
        return to_original(found, sizes, first_label=1)

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """See `Detector.core`: `cls_logits` [B, A, K + 1], `bbox_regression` [B, A, 4] of all A priors."""
        outputs: dict[str, Tensor] = self.head(self.features(images))
        return outputs

    def _outputs(self, images: Tensor, sizes: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        features = self.features(images)
        outputs = {name: value.float() for name, value in self.head(features).items()}
        priors = self.anchor_generator(image_list(images, sizes), features)
        return outputs, priors

    def _match(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Index of each prior's ground truth, or a negative number."""
        if len(boxes) == 0:
            return torch.full((len(priors),), -1, dtype=torch.int64, device=priors.device)
        matches: Tensor = self.borrowed[0].proposal_matcher(box_iou(boxes, priors))
        return matches


def build(recipe: SSDRecipe, classes: int, network: nn.Module) -> SSD:
    """Build from a recipe, for `classes` classes (background not counted), on a loaded backbone."""
    priors = DefaultBoxGenerator(
        [list(ratios) for ratios in recipe.aspect_ratios],
        scales=list(recipe.scales),
        steps=list(recipe.steps) if recipe.steps else None,
    )
    side = (recipe.image_size, recipe.image_size)
    if recipe.architecture == "ssd":
        body, head = vgg_extractor(network, False, recipe.trainable_layers), None
    else:
        body = mobilenet_extractor(network, recipe.trainable_layers, LITE_NORM)
        widths = retrieve_out_channels(body, side)
        head = SSDLiteHead(widths, priors.num_anchors_per_location(), classes + 1, LITE_NORM)
    net = TorchvisionSSD(
        body,
        priors,
        side,
        classes + 1,
        head=head,
        iou_thresh=recipe.fg_iou,
        positive_fraction=recipe.positive_fraction,
        score_thresh=recipe.score_threshold,
        nms_thresh=recipe.nms_threshold,
        detections_per_img=recipe.detections_per_image,
        topk_candidates=recipe.topk_candidates,
    )
    return SSD(net, recipe.image_mean, recipe.image_std)
