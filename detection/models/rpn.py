"""The region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3), over a whole batch.

Letters: B pictures, A anchors of all maps, K candidates and P proposals of a picture, S sampled anchors.
Boxes are float32 `x1, y1, x2, y2` in pixels of the batch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from detection import distributed
from detection.data.loading.batch import Targets
from detection.models.detector import flatten_places, map_sizes
from detection.models.postprocess import batched_gather, clip, valid_width
from detection.models.train_meters import ConfusionMeter
from detection.ops.anchors import AnchorGrid
from detection.ops.box_coder import decode, encode
from detection.ops.matcher import BACKGROUND, match, sample
from detection.ops.nms import grouped_nms
from detection.params.recipe import FasterRCNNRecipe


class RPNHead(TorchvisionRPNHead):  # type: ignore[misc]
    """Torchvision's head under its own names, with a width of its own.

    Args:
        channels: Of the maps.
        width: Of its convolutions.
        per_place: Anchors at a place.
        depth: Number of 3x3 convolutions.
    """

    conv: Any
    cls_logits: nn.Conv2d
    bbox_pred: nn.Conv2d

    def __init__(self, channels: int, width: int, per_place: int, depth: int) -> None:
        super().__init__(width, per_place, depth)
        if width != channels:
            self.conv[0][0] = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.normal_(self.conv[0][0].weight, std=0.01)
            nn.init.zeros_(self.conv[0][0].bias)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness logits Tensor[B, A] and deltas Tensor[B, A, 4] of maps Tensor[B, C, H, W]."""
        logits, deltas = [], []
        for one in maps:
            hidden = self.conv(one)
            logits.append(flatten_places(self.cls_logits(hidden), 1)[..., 0])
            deltas.append(flatten_places(self.bbox_pred(hidden), 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class RPN(nn.Module):
    """Tells objects from background at every anchor, and proposes boxes.

    Args:
        recipe: Anchors, thresholds, sampling and losses.
        channels: Of the maps.
    """

    def __init__(self, recipe: FasterRCNNRecipe, channels: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.anchors = AnchorGrid(
            recipe.anchors.sizes,
            recipe.anchors.aspect_ratios,
            strides=recipe.anchors.strides,
            offset=recipe.anchors.offset,
            rounded=recipe.anchors.round,
        )
        width = recipe.rpn.channels or channels
        self.head = RPNHead(channels, width, self.anchors.per_place[0], recipe.rpn.num_convs)
        self.confusion = ConfusionMeter("rpn", 2)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness logits Tensor[B, A] and deltas Tensor[B, A, 4]; float32, whatever the autocast."""
        logits, deltas = self.head(maps)
        return logits.float(), deltas.float()  # bf16 is too coarse for losses and boxes

    def anchors_of(self, maps: list[Tensor], images: Tensor) -> Tensor:
        """Tensor[A, 4] of a batch Tensor[B, 3, H, W] and its maps."""
        return self.anchors(map_sizes(maps), (images.shape[2], images.shape[3]), images.device)

    @torch.no_grad()
    def propose(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, maps: list[Tensor], inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose proposals: the best of each map, clipped to their picture, and of those the best after NMS.

        Args:
            logits: Tensor[B, A].
            deltas: Tensor[B, A, 4].
            anchors: Tensor[A, 4].
            maps: The feature maps, for the number of anchors on each.
            inside: Tensor[B, 2], int64: height and width that each picture fills of the batch.

        Returns:
            Proposals Tensor[B, P, 4], best first, and Tensor[B, P] of which are there; the others are zeros.
        """
        recipe = self.recipe
        most = recipe.rpn.pre_nms_top_n.train if self.training else recipe.rpn.pre_nms_top_n.test
        index, level = _best_of_each_map(logits, self.anchors.counts(map_sizes(maps)), most)  # [B, K], [K]
        scores = batched_gather(logits, index)
        boxes = clip(decode(batched_gather(deltas, index), anchors[index]), inside)
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= recipe.rpn.min_size).all(dim=2) & (scores.sigmoid() >= recipe.rpn.score_threshold)
        kept = grouped_nms(boxes, scores, level, len(maps), valid, recipe.rpn.nms_threshold)
        most = recipe.rpn.post_nms_top_n.train if self.training else recipe.rpn.post_nms_top_n.test
        ranked = scores.masked_fill(~kept, -torch.inf)
        values, best = ranked.topk(min(most, scores.shape[1]), dim=1)
        mask = values > -torch.inf
        mask = mask[:, : valid_width(mask)]
        chosen = batched_gather(boxes, best[:, : mask.shape[1]])
        return torch.where(mask[..., None], chosen, 0.0), mask  # a product would keep what is no number

    def losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Objectness (binary cross-entropy) and box (smooth L1) of a sample of anchors.

        Args:
            logits: Tensor[B, A].
            deltas: Tensor[B, A, 4].
            anchors: Tensor[A, 4].
            targets: The ground truth, with room for at least one object a picture.
        """
        recipe = self.recipe
        matches = match(
            targets.boxes,
            targets.mask,
            anchors,
            recipe.rpn.fg_iou,
            recipe.rpn.bg_iou,
            best="all_ties",
            allowed=_inside(anchors, targets.sizes) if recipe.rpn.inside_anchors_only else None,
        )  # [B, A]
        drawn = sample(
            matches >= 0, matches == BACKGROUND, recipe.rpn.batch_size_per_image, recipe.rpn.positive_fraction
        )
        index, positive, valid = drawn.index, drawn.positive, drawn.valid  # [B, S]
        drawn_logits = batched_gather(logits, index)
        self.confusion.add(positive.long(), (drawn_logits > 0).long(), valid)
        each = F.binary_cross_entropy_with_logits(drawn_logits, positive.float(), reduction="none")
        objects = batched_gather(targets.boxes, batched_gather(matches, index).clamp(min=0))
        wanted = encode(objects, anchors[index])
        found = batched_gather(deltas, index)
        return {
            "rpn_objectness": (each * valid).sum() / distributed.normalizer(valid.sum()),
            "rpn_box": box_loss(
                found, wanted, positive, valid, recipe.rpn.smooth_l1_beta, recipe.rpn.box_loss_normalizer
            ),
        }


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Tensor[B, A]: which anchors lie wholly inside each of the pictures of `sizes` [B, 2]."""
    limits = sizes.flip(1).to(anchors.dtype)[:, None]  # [B, 1, 2], width and height
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limits).all(dim=2)


def _best_of_each_map(logits: Tensor, counts: list[int], most: int) -> tuple[Tensor, Tensor]:
    """Indices Tensor[B, K] of the best of each map's so many anchors, and the map Tensor[K] of each."""
    first, indices, levels = 0, [], []
    for level, part in enumerate(torch.split(logits, counts, dim=1)):
        chosen = part.topk(min(most, part.shape[1]), dim=1).indices
        indices.append(chosen + first)
        levels.append(torch.full_like(chosen[0], level))
        first += part.shape[1]
    return torch.cat(indices, dim=1), torch.cat(levels)


def box_loss(
    deltas: Tensor, wanted: Tensor, positive: Tensor, sampled: Tensor, beta: float, normaliser: str
) -> Tensor:
    """Smooth L1 of the positives.

    Args:
        deltas: Tensor[B, S, 4].
        wanted: Tensor[B, S, 4]; may be anything, not a number too, where `positive` is false.
        positive: Tensor[B, S], bool.
        sampled: Tensor[B, S], bool.
        beta: Where square turns to linear.
        normaliser: `sampled`: the sum over the batch is divided by its samples; `positives`: each picture's
            by its positives, and the pictures' mean is taken.
    """
    wanted = torch.where(positive[..., None], wanted, 0.0)
    each = F.smooth_l1_loss(deltas, wanted, beta=beta, reduction="none").sum(dim=2) * positive  # [B, S]
    if normaliser == "positives":
        return (each.sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()
    return each.sum() / distributed.normalizer(sampled.sum())
