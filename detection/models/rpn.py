"""The region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3).

Letters: B images, A anchors of all maps, C channels, N candidates and P proposals of an image, S samples.
Boxes are float32 `x1, y1, x2, y2` in pixels of the batch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from detection import distributed
from detection.models.detector import Targets, matched_boxes, mean_box_loss
from detection.models.heads import flatten_cells
from detection.models.postprocess import batched_gather, clip, valid_width
from detection.models.train_meters import ConfusionMeter
from detection.ops.anchors import PyramidAnchorGenerator, feature_sizes
from detection.ops.box_coder import decode
from detection.ops.losses import box_loss
from detection.ops.matcher import BACKGROUND, balanced_sample, match
from detection.ops.nms import grouped_nms
from detection.params.recipe import FasterRCNNRecipe


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
        logits, deltas = [], []
        for level in features:
            hidden = self.conv(level)
            logits.append(flatten_cells(self.cls_logits(hidden), 1)[..., 0])
            deltas.append(flatten_cells(self.bbox_pred(hidden), 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class RPN(nn.Module):
    """Classifies anchors as object or background, and proposes boxes.

    Args:
        recipe: Anchors, thresholds, sampling and losses.
        channels: C of the feature maps.
    """

    def __init__(self, recipe: FasterRCNNRecipe, channels: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.anchors = PyramidAnchorGenerator(
            recipe.anchors.sizes,
            recipe.anchors.aspect_ratios,
            strides=recipe.anchors.strides,
            offset=recipe.anchors.offset,
            rounded=recipe.anchors.round,
        )
        width = recipe.rpn.channels or channels
        self.head = RPNHead(channels, width, self.anchors.anchors_per_cell[0], recipe.rpn.num_convs)
        self.confusion = ConfusionMeter("rpn", 2)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness logits Tensor[B, A] and deltas Tensor[B, A, 4], float32 under autocast too."""
        logits, deltas = self.head(features)
        return logits.float(), deltas.float()  # bf16 is too coarse for losses and boxes

    @torch.no_grad()
    def propose(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, features: list[Tensor], inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Proposals: the best boxes of each map, clipped to the image, and of those the best after NMS.

        Args:
            logits: Tensor[B, A].
            deltas: Tensor[B, A, 4].
            anchors: Tensor[A, 4].
            features: Feature maps, for the number of anchors on each.
            inside: Tensor[B, 2], int64: height and width of each image in the batch.

        Returns:
            Proposals Tensor[B, P, 4], by descending score, and a mask Tensor[B, P], false for padding, whose
            boxes are zeros.
        """
        recipe = self.recipe
        limit = recipe.rpn.pre_nms_top_n.train if self.training else recipe.rpn.pre_nms_top_n.test
        index, level = _topk_per_map(logits, self.anchors.counts(feature_sizes(features)), limit)
        scores = batched_gather(logits, index)  # [B, N]
        boxes = clip(decode(batched_gather(deltas, index), anchors[index]), inside)  # [B, N, 4]
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= recipe.rpn.min_size).all(dim=2) & (scores.sigmoid() >= recipe.rpn.score_threshold)
        keep = grouped_nms(boxes, scores, level, len(features), valid, recipe.rpn.nms_threshold)
        limit = recipe.rpn.post_nms_top_n.train if self.training else recipe.rpn.post_nms_top_n.test
        values, best = scores.masked_fill(~keep, -torch.inf).topk(min(limit, scores.shape[1]), dim=1)
        mask = values > -torch.inf
        mask = mask[:, : valid_width(mask)]
        proposals = batched_gather(boxes, best[:, : mask.shape[1]])
        return torch.where(mask[..., None], proposals, 0.0), mask  # a product would keep NaN

    def losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Binary cross-entropy of the objectness and smooth L1 of the boxes, over a sample of the anchors.

        Args:
            logits: Tensor[B, A].
            deltas: Tensor[B, A, 4].
            anchors: Tensor[A, 4].
            targets: Ground truth with M of at least 1.
        """
        recipe = self.recipe
        ignore = ~_inside(anchors, targets.sizes) if recipe.rpn.inside_anchors_only else None
        matches = match(
            targets.boxes, targets.mask, anchors, recipe.rpn.fg_iou, recipe.rpn.bg_iou, "all_ties", ignore
        )  # [B, A]
        sample = balanced_sample(
            matches >= 0, matches == BACKGROUND, recipe.rpn.batch_size_per_image, recipe.rpn.positive_fraction
        )
        index, positive, valid = sample.index, sample.positive, sample.valid  # [B, S]
        logits, deltas, anchors = batched_gather(logits, index), batched_gather(deltas, index), anchors[index]
        self.confusion.add(positive.long(), (logits > 0).long(), valid)
        entropy = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
        boxes = matched_boxes(targets, batched_gather(matches, index), anchors)  # [B, S, 4]
        loss = box_loss("smooth_l1", deltas, boxes, anchors, positive, beta=recipe.rpn.smooth_l1_beta)
        return {
            "rpn_objectness": (entropy * valid).sum() / distributed.normalizer(valid.sum()),
            "rpn_box": mean_box_loss(loss, positive, valid, recipe.rpn.box_loss_normalizer),
        }


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Tensor[B, A]: true for anchors [A, 4] that lie inside an image of `sizes` [B, 2]."""
    limits = sizes.flip(1).to(anchors.dtype)[:, None]  # [B, 1, 2], width and height
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limits).all(dim=2)


def _topk_per_map(logits: Tensor, counts: list[int], limit: int) -> tuple[Tensor, Tensor]:
    """Indices Tensor[B, N] of the best anchors of each map, at most `limit`, and their map Tensor[N]."""
    first, indices, levels = 0, [], []
    for level, part in enumerate(torch.split(logits, counts, dim=1)):
        best = part.topk(min(limit, part.shape[1]), dim=1).indices
        indices.append(best + first)
        levels.append(torch.full_like(best[0], level))
        first += part.shape[1]
    return torch.cat(indices, dim=1), torch.cat(levels)
