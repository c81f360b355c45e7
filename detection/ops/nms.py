"""Non-maximum suppression of many groups of boxes at once: the levels and classes of a batch of images.

Letters: B images, N boxes of an image, G groups of an image.
"""

import math

import torch
from torch import Tensor
from torchvision.ops import nms

MAX_BOXES = 2**15
"""Boxes per call on a GPU, unless one image has more: the kernel stores one bit per pair of boxes."""


@torch.no_grad()
def grouped_nms(boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float) -> Tensor:
    """Suppress, within each group of each image, every box that overlaps a kept box of a higher score.

    Equals `torchvision.ops.batched_nms` image by image. Invariant: the kept boxes are all kept when the
    suppression is repeated on them.

    Args:
        boxes: Tensor[B, N, 4], `x1, y1, x2, y2`, float32.
        scores: Tensor[B, N].
        group: Tensor[B, N] or Tensor[N], int64 in 0..G-1; boxes of different groups are independent.
        groups: G.
        valid: Tensor[B, N], bool, false for padding.
        threshold: IoU above which the box with the lower score is dropped.

    Returns:
        Tensor[B, N], bool: true for kept boxes.
    """
    implementation = _group_by_group if boxes.device.type == "cpu" else _on_tiles
    return implementation(boxes, scores, group.expand_as(scores), groups, valid, threshold)


def _group_by_group(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """CPU: the cost is quadratic in the size of a group, and a call per group needs no synchronization."""
    boxes, scores, group = boxes.flatten(0, 1), scores.flatten(), _groups_of_batch(group, groups)
    keep = torch.zeros_like(scores, dtype=torch.bool)  # [B * N]
    rows = valid.flatten().nonzero()[:, 0]
    rows = rows[group[rows].argsort(stable=True)]
    counts = torch.bincount(group[rows], minlength=groups * len(valid)).tolist()
    for part in torch.split(rows, counts):
        if len(part):
            keep[part[nms(boxes[part], scores[part], threshold)]] = True
    return keep.view_as(valid)


def _on_tiles(boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float) -> Tensor:
    """GPU: one call for all groups of at most `MAX_BOXES` boxes, with each group on a tile of its own.

    The tiles are arranged in a square, which keeps coordinates small and rounding errors with them: 80 groups
    of 1333 pixels in one line would round to 0.008 pixels.
    """
    images = max(1, MAX_BOXES // max(scores.shape[1], 1))
    if len(valid) > images:
        parts = zip(*(torch.split(rows, images) for rows in (boxes, scores, group, valid)), strict=True)
        return torch.cat([_on_tiles(b, s, g, groups, v, threshold) for b, s, g, v in parts])
    valid_flat, group = valid.flatten(), _groups_of_batch(group, groups)
    boxes = torch.where(valid_flat[:, None], boxes.flatten(0, 1), 0.0)  # NaN must not affect the tile size
    side = math.ceil(math.sqrt(groups * len(valid)))
    tile = (boxes.amax() - boxes.amin().clamp(max=0)) + 1
    corner = torch.stack([group % side, group // side], dim=1).to(boxes.dtype) * tile  # [B * N, 2]
    boxes = torch.where(valid_flat[:, None], boxes + corner.repeat(1, 2), 0.0)  # empty: suppresses nothing
    kept = nms(boxes, scores.flatten().masked_fill(~valid_flat, -math.inf), threshold)
    return (torch.zeros_like(valid_flat).index_fill_(0, kept, True) & valid_flat).view_as(valid)


def _groups_of_batch(group: Tensor, groups: int) -> Tensor:
    """Tensor[B * N]: group indices that are unique over the batch."""
    first = groups * torch.arange(len(group), device=group.device)
    return (group + first[:, None]).flatten()
