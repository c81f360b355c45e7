"""Candidates of a detector with a pyramid: the best of each level, decoded only as far as they are looked at.

Letters: B pictures in a batch, A anchors of all levels, K classes, N candidates of one picture.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from detection.models.postprocess import Candidates, best_pairs, clip
from detection.models.protocol import Sizes

Decode = Callable[[Tensor, Tensor], Tensor]
"""Boxes [B, N, 4] of outputs [B, N, 4] at anchors [B, N, 4]."""


def from_levels(
    scores: Tensor,
    outputs: Tensor,
    anchors: Tensor,
    counts: list[int],
    decode: Decode,
    sizes: Sizes,
    per_level: int,
    threshold: float,
) -> Callable[[int], Candidates]:
    """For `postprocess.finish`.

    Args:
        scores: Tensor[B, A, K], 0 to 1.
        outputs: Tensor[B, A, 4], what `decode` takes.
        anchors: Tensor[A, 4].
        counts: Anchors of each level.
        decode: From outputs and anchors to boxes.
        sizes: Of the pictures.
        per_level: Most candidates of a level.
        threshold: Scores must be above it.
    """
    parts, first = [], 0
    for level in torch.split(scores, counts, 1):
        values, rows, labels = best_pairs(level, min(per_level, level[0].numel()))
        parts.append((values, rows + first, labels))
        first += level.shape[1]
    values, rows, labels = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    values, order = torch.where(values > threshold, values, -1.0).sort(dim=1, descending=True, stable=True)
    rows, labels = rows.gather(1, order), labels.gather(1, order)

    def best(count: int) -> Candidates:
        part = rows[:, :count]
        picked = outputs.gather(1, part[..., None].expand(-1, -1, 4))
        boxes = clip(decode(picked, anchors[part]), sizes.inside)
        more = (values[:, count:] >= 0).any(1)
        return Candidates(boxes, values[:, :count], labels[:, :count], more)

    return best
