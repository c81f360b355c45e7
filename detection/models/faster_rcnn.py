"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497), on a pyramid (Lin et al., 1612.03144) or one map.

The RPN classifies anchors and proposes boxes; the RoI head classifies and refines the proposals. Parameters
have torchvision's names.

Letters: B images, A anchors of all maps, C channels, N candidates and P proposals of an image, M padded
ground-truth boxes, S samples, K classes. Boxes are float32 `x1, y1, x2, y2` in pixels of the batch.
"""

from collections import OrderedDict
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets
from detection.models.detector import BackboneDetector, Detections, by_size, matched_targets, mean_box_loss, pad_empty
from detection.models.fpn import c4_features, fpn
from detection.models.heads import ConfusionMeter, flatten_cells, over_levels
from detection.models.postprocess import batched_gather, clip, nms_and_rescale, topk_of_proposals, valid_width
from detection.ops.anchors import PyramidAnchorGenerator
from detection.ops.box_coder import Weights, decode
from detection.ops.losses import box_loss
from detection.ops.matcher import BACKGROUND, balanced_sample, match
from detection.ops.nms import grouped_nms
from detection.ops.roi_align import PyramidRoIAlign, RoIPool
from detection.params.recipe import FasterRCNNRecipe

ROI_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # one over the standard deviations of the RoI head's deltas
VGG_HIDDEN, VGG_POOL_SIZE = 4096, 7  # width and input size in cells of VGG16's fc6 and fc7


class FasterRCNN(BackboneDetector):
    """Two-stage detector.

    Args:
        recipe: Recipe of the detector.
        classes: Number of classes, background not counted.
        network: Classification network with its weights loaded.
    """

    def __init__(self, recipe: FasterRCNNRecipe, classes: int, network: nn.Module) -> None:
        norm = nn.BatchNorm2d if recipe.fpn_norm == "batch" else None
        on_fpn = recipe.features == "fpn"
        backbone: Any = fpn(recipe, network, norm=norm) if on_fpn else c4_features(recipe, network)
        super().__init__(recipe, backbone)
        self.recipe = recipe
        roi_heads = RoIHead(recipe, backbone.out_channels, classes, network)
        self.rpn = RPN(recipe, backbone.out_channels)
        self.roi_heads = roi_heads

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """See `Detector.losses`: RPN objectness and box, RoI classification and box."""
        targets = pad_empty(targets)
        features = self.features(images)
        logits, deltas = self.rpn(features)
        anchors, counts = self.rpn.anchors.for_batch(features, images)
        losses = self.rpn.losses(logits, deltas, anchors, targets)
        proposals, mask = self.rpn.propose(logits, deltas, anchors, counts, targets.sizes)
        return losses | self.roi_heads.losses(features, proposals, mask, targets, *images.shape[2:])

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`."""
        unpadded = self.recipe.anchors.strides is not None
        return by_size(self._detect, images, sizes) if unpadded else self._detect(images, sizes)

    def _detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        features = self.features(images)
        logits, deltas = self.rpn(features)
        anchors, counts = self.rpn.anchors.for_batch(features, images)
        inside = sizes.resized.to(images.device, non_blocking=True)
        proposals, mask = self.rpn.propose(logits, deltas, anchors, counts, inside)
        return self.roi_heads.detect(features, proposals, mask, sizes, *images.shape[2:])

    def raw_outputs(self, features: list[Tensor]) -> dict[str, Tensor]:
        """See `BackboneDetector.raw_outputs`: `objectness` [B, A], `deltas` [B, A, 4] and the feature maps."""
        objectness, deltas = self.rpn(features)
        levels = {f"features_{i}": level for i, level in enumerate(features)}
        return {"objectness": objectness, "deltas": deltas, **levels}


class RPNHead(TorchvisionRPNHead):  # type: ignore[misc]
    """torchvision's head, with a width that may differ from the maps'.

    Args:
        channels: C of the feature maps.
        width: Channels of its convolutions.
        anchors_per_cell: Number of anchors per cell.
        depth: Number of 3x3 convolutions.
    """

    conv: Any
    cls_logits: nn.Conv2d
    bbox_pred: nn.Conv2d

    def __init__(self, channels: int, width: int, anchors_per_cell: int, depth: int) -> None:
        super().__init__(width, anchors_per_cell, depth)
        if width != channels:
            self.conv[0][0] = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.normal_(self.conv[0][0].weight, std=0.01)
            nn.init.zeros_(self.conv[0][0].bias)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness logits Tensor[B, A] and deltas Tensor[B, A, 4] of maps Tensor[B, C, H, W]."""
        hidden = [self.conv(level) for level in features]
        logits = torch.cat([flatten_cells(self.cls_logits(level), 1)[..., 0] for level in hidden], dim=1)
        return logits, over_levels(hidden, self.bbox_pred, 4)


class RPN(nn.Module):
    """Region proposal network: classifies anchors as object or background, and proposes boxes (section 3).

    In all methods, `logits` are Tensor[B, A], `deltas` Tensor[B, A, 4] and `anchors` Tensor[A, 4].

    Args:
        recipe: Anchors, thresholds, sampling and losses.
        channels: C of the feature maps.
    """

    def __init__(self, recipe: FasterRCNNRecipe, channels: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.anchors = PyramidAnchorGenerator(**asdict(recipe.anchors))
        width = recipe.rpn.channels or channels
        self.head = RPNHead(channels, width, self.anchors.anchors_per_cell[0], recipe.rpn.num_convs)
        self.confusion = ConfusionMeter("rpn", 2)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness logits Tensor[B, A] and deltas Tensor[B, A, 4], float32 under autocast too."""
        logits, deltas = self.head(features)
        return logits.float(), deltas.float()  # bf16 is too coarse for losses and boxes

    @torch.no_grad()
    def propose(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, counts: list[int], sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Proposals: the best boxes of each map, clipped to the image, and of those the best after NMS.

        With `anchors.strides`, locations in the padding propose nothing. (torchvision's do.)

        `counts` are the numbers of anchors per map, `sizes` Tensor[B, 2] height and width of each image in the batch.

        Returns:
            Proposals Tensor[B, P, 4], by descending score, and a mask Tensor[B, P], false for padding of zeros.
        """
        rpn = self.recipe.rpn
        if self.recipe.anchors.strides is not None:
            logits = logits.masked_fill(~centered_inside(anchors, sizes), -torch.inf)
        limit = rpn.pre_nms_top_n.train if self.training else rpn.pre_nms_top_n.test
        index, level = _topk_per_map(logits, counts, limit)
        scores = batched_gather(logits, index)  # [B, N]
        boxes = clip(decode(batched_gather(deltas, index), anchors[index]), sizes)  # [B, N, 4]
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= rpn.min_size).all(dim=2) & (scores.sigmoid() >= rpn.score_threshold)
        keep = grouped_nms(boxes, scores, level, len(counts), valid, rpn.nms_threshold)
        limit = rpn.post_nms_top_n.train if self.training else rpn.post_nms_top_n.test
        values, best = scores.masked_fill(~keep, -torch.inf).topk(min(limit, scores.shape[1]), dim=1)
        mask = values > -torch.inf
        mask = mask[:, : valid_width(mask)]
        proposals = batched_gather(boxes, best[:, : mask.shape[1]])
        return torch.where(mask[..., None], proposals, 0.0), mask  # a product would keep NaN

    def losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Binary cross-entropy of the objectness and smooth L1 of the boxes, over a sample of the anchors.

        The ground truth has M of at least 1.
        """
        rpn = self.recipe.rpn
        ignore = ~_inside(anchors, targets.sizes) if rpn.inside_anchors_only else None
        objects, mask = targets.boxes, targets.mask
        matches = match(objects, mask, anchors, rpn.fg_iou, rpn.bg_iou, rpn.low_quality_matches, ignore)  # [B, A]
        sample = balanced_sample(matches >= 0, matches == BACKGROUND, rpn.batch_size_per_image, rpn.positive_fraction)
        index, positive, valid = sample.index, sample.positive, sample.valid  # [B, S]
        logits, deltas, anchors = batched_gather(logits, index), batched_gather(deltas, index), anchors[index]
        self.confusion.add(positive.long(), (logits > 0).long(), valid)
        entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        boxes, _ = matched_targets(targets, batched_gather(matches, index), anchors)  # [B, S, 4]
        loss = box_loss("smooth_l1", deltas, boxes, anchors, positive, beta=rpn.smooth_l1_beta)
        return {
            "rpn_objectness": (entropy * valid).sum() / distributed.normalizer(valid.sum()),
            "rpn_box": mean_box_loss(loss, positive, valid, rpn.box_loss_normalizer),
        }


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Tensor[B, A]: true for anchors [A, 4] that lie inside an image of `sizes` [B, 2]."""
    limits = sizes.flip(1).to(anchors.dtype)[:, None]  # [B, 1, 2], width and height
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limits).all(dim=2)


def centered_inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Tensor[B, A]: true for anchors [A, 4] whose center, their location, lies inside an image of `sizes` [B, 2]."""
    limits = sizes.flip(1).to(anchors.dtype)[:, None]  # [B, 1, 2], width and height
    return ((anchors[:, :2] + anchors[:, 2:]) / 2 < limits).all(dim=2)


def _topk_per_map(logits: Tensor, counts: list[int], limit: int) -> tuple[Tensor, Tensor]:
    """Indices Tensor[B, N] of the best anchors of each map, at most `limit`, and their map Tensor[N]."""
    first, indices, levels = 0, [], []
    for level, part in enumerate(torch.split(logits, counts, dim=1)):
        best = part.topk(min(limit, part.shape[1]), dim=1).indices
        indices.append(best + first)
        levels.append(torch.full_like(best[0], level))
        first += part.shape[1]
    return torch.cat(indices, dim=1), torch.cat(levels)


class RoIHead(nn.Module):
    """Second stage: pools each proposal's features and predicts its class and one box per class.

    Fast R-CNN (Girshick 2015, arXiv:1504.08083). The outputs have K + 1 classes, 0 the background.
    In all methods, `features` are the feature maps Tensor[B, C, H, W]; `proposals` Tensor[B, P, 4] with a
    `mask` Tensor[B, P], false for padding; and `height` and `width` those of the padded batch.

    Args:
        recipe: Pooling, layers, thresholds, sampling and losses.
        channels: C of the feature maps.
        classes: K.
        network: Classification network, for VGG16's fully connected layers or ResNet's layer4.
    """

    def __init__(self, recipe: FasterRCNNRecipe, channels: int, classes: int, network: Any) -> None:
        super().__init__()
        self.recipe, roi = recipe, recipe.roi
        if roi.head == "layer4":
            self.box_head, width = _layer4_head(network.layer4), network.fc.in_features
        else:
            self.box_head, width = _fc_head(recipe, channels, network), roi.hidden_channels
        self.box_predictor = FastRCNNPredictor(width, classes + 1)
        if roi.output_init == "normal":
            nn.init.normal_(self.box_predictor.cls_score.weight, std=0.01)
            nn.init.normal_(self.box_predictor.bbox_pred.weight, std=0.001)
            nn.init.zeros_(self.box_predictor.cls_score.bias)
            nn.init.zeros_(self.box_predictor.bbox_pred.bias)
        if roi.pooling == "roi_align":
            self.pool: nn.Module = PyramidRoIAlign(roi.pool_size)
        else:
            self.pool = RoIPool(roi.pool_size, by_sides=roi.pool_scale == "image")
        self.confusion = ConfusionMeter("roi", classes + 1)

    def forward(self, features: list[Tensor], boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Class logits Tensor[B, P, K + 1] and deltas Tensor[B, P, K + 1, 4] of boxes, float32."""
        batch, count = boxes.shape[:2]
        if len(features) > 1:
            features = features[:-1]  # the topmost level of a pyramid is for the RPN only
        logits, deltas = self.box_predictor(self.box_head(self.pool(features, boxes, height, width)))
        return logits.float().view(batch, count, -1), deltas.float().view(batch, count, -1, 4)

    def losses(
        self, features: list[Tensor], proposals: Tensor, mask: Tensor, targets: Targets, height: int, width: int
    ) -> dict[str, Tensor]:
        """Cross-entropy of the classes and smooth L1 of the boxes, over a sample of the proposals.

        The ground truth, of M at least 1, is added to the proposals.
        """
        roi = self.recipe.roi
        boxes, matches, valid = self._sample(proposals, mask, targets)  # [B, S, 4], [B, S], [B, S]
        matched, labels = matched_targets(targets, matches, boxes)
        labels = torch.where(matches >= 0, labels + 1, 0)
        logits, deltas = self(features, boxes, height, width)
        self.confusion.add(labels, logits.argmax(dim=2), valid)
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        own = labels[..., None, None].expand(-1, -1, 1, 4)
        deltas = deltas.gather(2, own)[:, :, 0]  # [B, S, 4], those of the true class
        positive = (labels > 0) & valid
        loss = box_loss("smooth_l1", deltas, matched, boxes, positive, ROI_WEIGHTS, roi.smooth_l1_beta)
        return {
            "roi_class": (entropy * valid).sum() / distributed.normalizer(valid.sum()),
            "roi_box": mean_box_loss(loss, positive, valid, roi.box_loss_normalizer),
        }

    @torch.no_grad()
    def _sample(self, proposals: Tensor, mask: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled boxes [B, S, 4], their matches [B, S], and a mask [B, S], false for padding.

        An image with fewer samples is padded by repeating them, so that BatchNorm in the head sees only real
        proposals.
        """
        roi = self.recipe.roi
        boxes = torch.cat([proposals, targets.boxes], dim=1)
        ignore = ~torch.cat([mask, targets.mask], dim=1)
        matches = match(targets.boxes, targets.mask, boxes, roi.fg_iou, roi.bg_iou, ignore=ignore)
        sample = balanced_sample(matches >= 0, matches == BACKGROUND, roi.batch_size_per_image, roi.positive_fraction)
        valid = sample.valid[:, : valid_width(sample.valid)]
        position = torch.arange(valid.shape[1], device=mask.device)[None]
        index = batched_gather(sample.index, position % valid.sum(dim=1, keepdim=True).clamp(min=1))
        return batched_gather(boxes, index), batched_gather(matches, index), valid

    def detect(
        self, features: list[Tensor], proposals: Tensor, mask: Tensor, sizes: ImageSizes, height: int, width: int
    ) -> list[Detections]:
        """Score every class of every proposal, and keep the best after NMS by class."""
        recipe, coder = self.recipe, partial(decode, weights=ROI_WEIGHTS)
        logits, deltas = self(features, proposals, height, width)
        scores = logits.softmax(dim=2)[..., 1:] * mask[..., None]  # [B, P, K]
        inside = sizes if recipe.clip_before_nms else None
        candidates = topk_of_proposals(scores, deltas, proposals, coder, inside, recipe.score_threshold)
        return nms_and_rescale(candidates, sizes, recipe.nms_threshold, recipe.detections_per_image, scores.shape[2])


def _fc_head(recipe: FasterRCNNRecipe, channels: int, network: Any) -> nn.Module:
    """Two fully connected layers, VGG16's own if they fit; or four convolutions and one such layer."""
    side, hidden = recipe.roi.pool_size, recipe.roi.hidden_channels
    if recipe.roi.head == "conv_fc":
        shape, widths = (channels, side, side), [channels] * 4
        conv_head: nn.Module = FastRCNNConvFCHead(shape, widths, [hidden], norm_layer=nn.BatchNorm2d)
        return conv_head
    head: nn.Module = TwoMLPHead(channels * side**2, hidden)
    if recipe.backbone == "vgg16" and (side, hidden) == (VGG_POOL_SIZE, VGG_HIDDEN):
        head.fc6, head.fc7 = network.classifier[0], network.classifier[3]
    return head


def _layer4_head(layer4: nn.Module) -> nn.Module:
    """ResNet's last stage and the mean over its cells, for one map of stride 16 (He et al., 1512.03385)."""
    return nn.Sequential(OrderedDict(layer4=layer4, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
