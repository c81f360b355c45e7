"""Non-maximum suppression of many groups of boxes at once: the levels and classes of a batch of images.

Letters: B images, N boxes of an image, G groups of an image.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from detection.ops.matcher import batched_iou

TILE = 512
"""Boxes of a group whose suppression by each other is resolved at a time, on a GPU."""
MAX_PAIRS = 2**25
"""Pairs of boxes compared at a time on a GPU, unless one group has more: about 0.5 GiB."""


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
    implementation = _group_by_group if boxes.device.type == "cpu" else _in_parallel
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


def _in_parallel(boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float) -> Tensor:
    """GPU: the groups side by side, since torchvision's kernel passes over all boxes of a call one after the other.

    It took 53 of 190 ms of a Faster R-CNN step of 16 images on an H100.
    """
    boxes, group = boxes.flatten(0, 1), _groups_of_batch(group, groups)
    rows = valid.flatten().nonzero()[:, 0]
    rows = rows[scores.flatten()[rows].argsort(descending=True, stable=True)]
    rows = rows[group[rows].argsort(stable=True)]
    starts = torch.searchsorted(group[rows], torch.arange(groups * len(valid) + 1, device=rows.device))
    keep = torch.zeros_like(group, dtype=torch.bool)  # [B * N]
    for chosen, width in _alike(starts.diff().cpu().numpy()):
        first, end = starts[chosen, None], starts[chosen + 1, None]
        position = first + torch.arange(width, device=rows.device)  # [groups of this part, width]
        row = rows[position.clamp(max=len(rows) - 1)]
        kept = _suppress(boxes[row], position < end, threshold)
        keep.index_fill_(0, row[kept], True)
    return keep.view_as(valid)


def _alike(sizes: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Parts of the groups that are not empty, with the largest size: groups of about a size, few enough pairs."""
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    while len(order):
        width = int(sizes[order[0]])
        count = min(max(1, MAX_PAIRS // (width * min(width, TILE))), int(np.count_nonzero(2 * sizes[order] >= width)))
        yield order[:count], width
        order = order[count:]


def _suppress(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Greedy suppression within each row of boxes [P, N, 4] by descending score; `valid` is Tensor[P, N].

    A tile of boxes is first compared with the kept ones before it. Within it, the boxes that no kept box suppresses
    are determined again until they stay: the best of the tile stays after the first round, and so on.

    Returns:
        Tensor[P, N], bool: true for kept boxes.
    """
    rounded = np.float32(threshold)  # float32 IoUs compare with the float64 threshold, as in torchvision
    limit = float(rounded if rounded <= threshold else np.nextafter(rounded, np.float32(-np.inf)))
    keep = valid.clone()
    for first in range(0, valid.shape[1], TILE):
        tile = slice(first, first + TILE)
        if first:
            keep[:, tile] &= batched_iou(boxes[:, :first], keep[:, :first], boxes[:, tile]).amax(dim=1) <= limit
        start = keep[:, tile].clone()
        overlaps = (batched_iou(boxes[:, tile], start, boxes[:, tile]) > limit).triu(1)  # of a better box, by rows
        while True:
            kept = start & ~(overlaps & keep[:, tile, None]).any(dim=1)
            if torch.equal(kept, keep[:, tile]):
                break
            keep[:, tile] = kept
    return keep


def _groups_of_batch(group: Tensor, groups: int) -> Tensor:
    """Tensor[B * N]: group indices that are unique over the batch."""
    first = groups * torch.arange(len(group), device=group.device)
    return (group + first[:, None]).flatten()
