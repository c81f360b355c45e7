"""Non-maximum suppression of many groups of boxes at once: the pictures, levels and classes of a batch.

Letters: N boxes of all groups.
"""

import math

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.no_grad()
def grouped_nms(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """Of each group, drop every box that overlaps a better one which is kept.

    Args:
        boxes: Tensor[N, 4], `x1, y1, x2, y2`, float32.
        scores: Tensor[N].
        group: Tensor[N], int64 in 0..groups - 1; boxes of different groups do not see each other.
        groups: Number of groups.
        valid: Tensor[N], bool: boxes that are there at all.
        threshold: IoU above which the weaker of two is dropped.

    Returns:
        Tensor[N], bool: which are kept.
    """
    suppressed = _group_by_group if boxes.device.type == "cpu" else _on_tiles
    return suppressed(boxes, scores, group, groups, valid, threshold)


def _group_by_group(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """For the CPU: the work grows with the square of a group, and there is no device to wait for."""
    kept = torch.zeros_like(valid)
    rows = valid.nonzero()[:, 0]
    rows = rows[group[rows].argsort(stable=True)]
    counts = torch.bincount(group[rows], minlength=groups).tolist()
    for part in torch.split(rows, counts):
        if len(part):
            kept[part[nms(boxes[part], scores[part], threshold)]] = True
    return kept


def _on_tiles(
    boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float
) -> Tensor:
    """For a GPU, in one go: each group gets a tile of the plane for itself.

    Tiles in a square keep the coordinates small, and with them the rounding: in a row, 80 groups of 1333
    pixels would be 0.008 pixels coarse.
    """
    boxes = torch.where(valid[:, None], boxes, 0.0)  # what is no number must not lay out the tiles
    side = math.ceil(math.sqrt(groups))
    tile = (boxes.amax() - boxes.amin().clamp(max=0)) + 1
    corner = torch.stack([group % side, group // side], dim=1).to(boxes.dtype) * tile  # [N, 2]
    there = torch.where(valid[:, None], boxes + corner.repeat(1, 2), 0.0)  # the empty box suppresses nothing
    chosen = nms(there, scores.masked_fill(~valid, -math.inf), threshold)
    return torch.zeros_like(valid).index_fill_(0, chosen, True) & valid
