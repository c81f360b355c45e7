"""Batched anchor-to-ground-truth assignment and balanced sampling, without host synchronization.

Letters: B images, M padded ground-truth boxes of an image, A anchors (or proposals), S samples of an image.
Boxes are float32 `x1, y1, x2, y2`. Ground truth is padded to M with a mask; anchors are common to all images
([A, 4]) or per image ([B, A, 4]). No tensor here has a shape that depends on data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BACKGROUND = -1
"""Match of an anchor without an object."""
IGNORE = -2
"""Match of an anchor that no loss counts: between the thresholds of background and foreground."""
MAX_IOUS = {"cpu": 2**20, "cuda": 2**25}
"""IoUs computed at a time, by device: they fit a CPU's cache, and a batch of large images fits a GPU."""
LowQualityMatches = Literal["none", "all_ties", "unique", "unique_below_fg"]


def batched_iou(boxes: Tensor, mask: Tensor, anchors: Tensor) -> Tensor:
    """Intersection over union of every ground-truth box with every anchor of its image.

    Args:
        boxes: Tensor[B, M, 4], ground truth.
        mask: Tensor[B, M], bool, false for padding.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].

    Returns:
        Tensor[B, M, A], 0 to 1; 0 where both boxes are empty, -1 for padding.
    """
    x1, y1, x2, y2 = boxes[..., None].unbind(2)  # [B, M, 1]
    anchors = anchors if anchors.dim() == 3 else anchors[None]
    a_x1, a_y1, a_x2, a_y2 = anchors[:, None].unbind(3)  # [B or 1, 1, A]
    intersection = torch.minimum(x2, a_x2).sub_(torch.maximum(x1, a_x1)).clamp_(min=0)
    intersection.mul_(torch.minimum(y2, a_y2).sub_(torch.maximum(y1, a_y1)).clamp_(min=0))
    union = ((x2 - x1) * (y2 - y1) + (a_x2 - a_x1) * (a_y2 - a_y1)).sub_(intersection)
    iou = intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))
    return iou.masked_fill_(~mask[..., None], -1)


@torch.no_grad()
def match(
    boxes: Tensor,
    mask: Tensor,
    anchors: Tensor,
    fg_iou: float,
    bg_iou: float,
    low_quality: LowQualityMatches = "none",
    ignore: Tensor | None = None,
) -> Tensor:
    """Assign each anchor to a ground-truth box, to the background, or to neither.

    The match quality matrix holds the IoU of each of the M boxes with each of the A anchors. An anchor whose
    largest IoU is at least `fg_iou` is matched with the first box that has it; below `bg_iou` it is
    background; between the two it is ignored.

    A box whose anchors all stay below `fg_iou` would never be learned. Low-quality matches give it its best
    anchors regardless of their IoU (Ren et al. 2015, arXiv:1506.01497, section 3.1.2):

    * `all_ties`: every anchor that ties for a box's largest IoU is matched, with the box that the *anchor*
      overlaps most. Equals torchvision's `Matcher(fg_iou, bg_iou, allow_low_quality_matches=True)`.
    * `unique`: the first of them is matched with that box; if two boxes claim the same anchor, the later one
      gets it. Equals torchvision's `SSDMatcher(fg_iou)` for `bg_iou == fg_iou` (Liu et al. 2015,
      arXiv:1512.02325, section 2.2).
    * `unique_below_fg`: as `unique`, but an anchor whose largest IoU is at least `fg_iou` keeps the box that it
      overlaps most (xytpai's RetinaNet).

    Example: with `fg_iou=0.7, bg_iou=0.3`, IoUs of one box [0.1, 0.5, 0.6] give [-1, -2, -2], and with any
    type of low-quality match [-1, -2, 0].

    A box that overlaps no anchor claims none. (torchvision assigns it every anchor that overlaps no box, or
    the first anchor; only a degenerate box gets there.)

    Invariant: adding padding changes no match, and the result for a batch is that of its images one by one.

    Args:
        boxes: Tensor[B, M, 4], ground truth.
        mask: Tensor[B, M], bool, false for padding; an image may have no objects.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].
        fg_iou: Minimum IoU of a match.
        bg_iou: IoU below which an anchor is background; at most `fg_iou`.
        low_quality: Type of low-quality matches.
        ignore: Tensor[A] or Tensor[B, A], bool: anchors that become `IGNORE` and are no box's best anchor.

    Returns:
        Tensor[B, A], int64: index of a box in 0..M-1, `BACKGROUND` or `IGNORE`.
    """
    assert bg_iou <= fg_iou, "bg_iou exceeds fg_iou"
    batch, count = boxes.shape[0], anchors.shape[-2]
    best_iou = boxes.new_full((batch, count), -1.0)
    best_box = torch.zeros(batch, count, dtype=torch.int64, device=boxes.device)
    claims = torch.full_like(best_box, BACKGROUND)
    if ignore is not None:
        ignore = ignore.expand(batch, count)
    for first, part in _chunks(boxes, count):
        quality = batched_iou(boxes[:, part], mask[:, part], anchors)  # [B, m, A]
        iou, index = quality.max(dim=1)  # [B, A]
        better = iou > best_iou  # strictly, so that the first of equal boxes wins
        best_iou = torch.where(better, iou, best_iou)
        best_box = torch.where(better, index + first, best_box)
        if low_quality != "none":
            claims = torch.maximum(claims, _claims(quality, first, low_quality, ignore))
    matches = torch.where(best_iou >= fg_iou, best_box, torch.where(best_iou < bg_iou, BACKGROUND, IGNORE))
    if low_quality != "none":
        claimed = claims >= 0
        if low_quality == "unique_below_fg":
            claimed &= best_iou < fg_iou
        matches = torch.where(claimed, best_box if low_quality == "all_ties" else claims, matches)
    return matches if ignore is None else torch.where(ignore, IGNORE, matches)


def _claims(quality: Tensor, first: int, low_quality: LowQualityMatches, ignore: Tensor | None) -> Tensor:
    """Tensor[B, A]: index of the box with a low-quality match to the anchor (the last of several), or -1.

    `quality` are the IoUs Tensor[B, m, A] of a chunk of the boxes, whose first has the index `first`.
    """
    if ignore is not None:
        quality = quality.masked_fill(ignore[:, None], -1)
    best_iou, best_anchor = quality.max(dim=2)  # [B, m]
    box = torch.arange(first, first + quality.shape[1], device=quality.device).expand(best_iou.shape)
    box = torch.where(best_iou > 0, box, BACKGROUND)
    if low_quality == "all_ties":
        return torch.where(quality == best_iou[..., None], box[..., None], BACKGROUND).amax(dim=1)
    none = torch.full_like(quality[:, 0], BACKGROUND, dtype=torch.int64)
    return none.scatter_reduce(1, best_anchor, box, reduce="amax")


@torch.no_grad()
def match_centers(boxes: Tensor, mask: Tensor, anchors: Tensor, counts: list[int], radius: float) -> Tensor:
    """FCOS's assignment with center sampling (Tian et al. 2019, arXiv:1904.01355, section 3.2).

    A location is matched with a box if it lies inside the box, within `radius` strides of the box's center in both
    directions, and if the farthest edge is between 4 and 8 strides away; the first level has no lower limit and the
    last no upper one. Of several such boxes the smallest is taken. Equals torchvision's `FCOS`, including the float32
    resolution of its areas: areas up to 8 square pixels apart are equal, and the first box wins.

    Args:
        boxes: Tensor[B, M, 4], ground truth.
        mask: Tensor[B, M], bool, false for padding; an image may have no objects.
        anchors: Tensor[A, 4], one square per location, as wide as the stride.
        counts: Number of locations per level.
        radius: Radius of center sampling in strides.

    Returns:
        Tensor[B, A], int64: index of a box in 0..M-1, or `BACKGROUND`.
    """
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)  # [A]
    stride = anchors[:, 2] - anchors[:, 0]
    nearest, farthest = stride * 4, stride * 8
    nearest[: counts[0]] = 0
    farthest[-counts[-1] :] = float("inf")
    best = boxes.new_full((boxes.shape[0], len(anchors)), 1e-5)
    matches = torch.full(best.shape, BACKGROUND, device=boxes.device)
    for first, part in _chunks(boxes, len(anchors)):
        x1, y1, x2, y2 = boxes[:, part, :, None].unbind(2)  # [B, m, 1]
        edges = torch.stack([x - x1, y - y1, x2 - x, y2 - y])  # [4, B, m, A]
        farthest_edge = edges.amax(0)
        center_distance = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
        valid = (edges.amin(0) > 0) & (center_distance < radius * stride) & mask[:, part, None]
        valid &= (farthest_edge > nearest) & (farthest_edge < farthest)
        smallness, index = (valid * (1e8 - (x2 - x1) * (y2 - y1))).max(dim=1)  # [B, A]
        better = smallness > best
        best = torch.where(better, smallness, best)
        matches = torch.where(better, index + first, matches)
    return matches


@dataclass(frozen=True, slots=True)
class BalancedSample:
    """Sampled anchors of each image, positives first, padding last."""

    index: Tensor
    """Tensor[B, S], int64: indices of the anchors; arbitrary where `valid` is false."""
    positive: Tensor
    """Tensor[B, S], bool: true for positives."""
    valid: Tensor
    """Tensor[B, S], bool: false for padding, where an image has too few anchors."""


@torch.no_grad()
def balanced_sample(
    positive: Tensor, negative: Tensor, count: int, positive_fraction: float, keys: Tensor | None = None
) -> BalancedSample:
    """Sample positives and negatives at random, without replacement.

    At most `int(count * positive_fraction)` positives; negatives fill the rest. Equals torchvision's
    `BalancedPositiveNegativeSampler` except for the random numbers.

    Args:
        positive: Tensor[B, A], bool.
        negative: Tensor[B, A], bool; disjoint from `positive`.
        count: Samples per image.
        positive_fraction: Maximum fraction of positives, 0 to 1.
        keys: Tensor[B, A] in 0..1: the anchors with the smallest keys are sampled. None: random keys.
    """
    if keys is None:
        keys = torch.rand(positive.shape, device=positive.device)
    total = positive.shape[1]
    max_positives = min(int(count * positive_fraction), total)
    p_key, p_index = keys.masked_fill(~positive, 2.0).topk(max_positives, largest=False)  # ascending
    n_key, n_index = keys.masked_fill(~negative, 2.0).topk(min(count, total), largest=False)
    p_valid = p_key < 2.0
    remaining = count - p_valid.sum(1, keepdim=True)
    n_valid = (n_key < 2.0) & (torch.arange(n_key.shape[1], device=keys.device) < remaining)
    valid = torch.cat([p_valid, n_valid], dim=1)
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]  # valid ones first
    index = torch.cat([p_index, n_index], dim=1).gather(1, order)
    valid = valid.gather(1, order)
    return BalancedSample(index, (order < max_positives) & valid, valid)


def _chunks(boxes: Tensor, anchors: int) -> Iterator[tuple[int, slice]]:
    """First index and slice of chunks of the M boxes whose IoUs with the anchors fit `MAX_IOUS`."""
    batch, count = boxes.shape[:2]
    size = max(1, MAX_IOUS.get(boxes.device.type, MAX_IOUS["cuda"]) // max(1, batch * anchors))
    for first in range(0, count, size):
        yield first, slice(first, first + size)
