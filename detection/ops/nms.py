"""Non-maximum suppression of many groups of boxes at once: the levels and classes of a batch of pictures.

Letters: B pictures, N boxes of each.
"""

import math

import torch
from torch import Tensor
from torchvision.ops import nms

MOST = 2**15
"""Boxes of one call on a GPU, unless a picture has more: the kernel compares all pairs, a bit for each."""


@torch.no_grad()
def grouped_nms(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """Of each group of each picture, drop every box that overlaps a better one which is kept.

    Args:
        boxes: Tensor[B, N, 4], `x1, y1, x2, y2`, float32.
        scores: Tensor[B, N].
        group: Tensor[B, N] or Tensor[N], int64 in 0..groups - 1; boxes of different groups do not see each
            other.
        groups: Number of groups of a picture.
        valid: Tensor[B, N], bool: boxes that are there at all.
        threshold: IoU above which the weaker of two is dropped.

    Returns:
        Tensor[B, N], bool: which are kept.
    """
    suppressed = _group_by_group if boxes.device.type == "cpu" else _on_tiles
    return suppressed(boxes, scores, group.expand_as(scores), groups, valid, threshold)


def _group_by_group(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """For the CPU: the work grows with the square of a group, and there is no device to wait for."""
    boxes, scores, group = boxes.flatten(0, 1), scores.flatten(), _over_pictures(group, groups)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    rows = valid.flatten().nonzero()[:, 0]
    rows = rows[group[rows].argsort(stable=True)]
    counts = torch.bincount(group[rows], minlength=groups * len(valid)).tolist()
    for part in torch.split(rows, counts):
        if len(part):
            kept[part[nms(boxes[part], scores[part], threshold)]] = True
    return kept.view_as(valid)


def _on_tiles(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """For a GPU: some pictures in one go, each group on a tile of the plane for itself."""
    several = max(1, MOST // max(scores.shape[1], 1))
    parts = zip(*(torch.split(rows, several) for rows in (boxes, scores, group, valid)), strict=True)
    return torch.cat([_on_one_plane(b, s, g, groups, v, threshold) for b, s, g, v in parts])


def _on_one_plane(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """Tiles in a square keep the coordinates small, and with them the rounding.

    In a row, 80 groups of 1333 pixels would be 0.008 pixels coarse.
    """
    there, group = valid.flatten(), _over_pictures(group, groups)
    boxes = torch.where(there[:, None], boxes.flatten(0, 1), 0.0)  # what is no number must not lay out tiles
    side = math.ceil(math.sqrt(groups * len(valid)))
    tile = (boxes.amax() - boxes.amin().clamp(max=0)) + 1
    corner = torch.stack([group % side, group // side], dim=1).to(boxes.dtype) * tile  # [B * N, 2]
    boxes = torch.where(there[:, None], boxes + corner.repeat(1, 2), 0.0)  # an empty box suppresses nothing
    chosen = nms(boxes, scores.flatten().masked_fill(~there, -math.inf), threshold)
    return (torch.zeros_like(there).index_fill_(0, chosen, True) & there).view_as(valid)


def _over_pictures(group: Tensor, groups: int) -> Tensor:
    """Tensor[B * N]: the groups of all pictures, each with a number of its own."""
    first = groups * torch.arange(len(group), device=group.device)
    return (group + first[:, None]).flatten()
