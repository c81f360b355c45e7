"""From scored boxes to detections: non-maximum suppression over the batch, and the way back to the files.

Letters: B pictures in a batch, N candidates of one picture, A anchors, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detection.models.protocol import Detections, Sizes
from detection.nms import grouped_nms

FIRST_TRY = 4  # candidates looked at, as a multiple of the detections wanted
MORE = 8  # times as many where they did not suffice


@dataclass(frozen=True, slots=True)
class Candidates:
    """The N best-scored boxes of each picture, best first."""

    boxes: Tensor
    """Tensor[B, N, 4], in pixels of the batch, inside of it."""
    scores: Tensor
    """Tensor[B, N], falling, but for -1 where there is no candidate."""
    labels: Tensor
    """Tensor[B, N], int64."""
    more: Tensor
    """Tensor[B], bool: the picture may have others, with lower scores."""


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of an anchor and a class.

    Only the `count` anchors with the best single score can be among them; to look for those first is five
    times as fast on a CPU as to sort all pairs.

    Args:
        scores: Tensor[B, A, K].
        count: How many are wanted, at most A K.

    Returns:
        Score (falling), anchor and class, each Tensor[B, count].
    """
    _, anchors, classes = scores.shape
    _, rows = scores.amax(2).topk(min(count, anchors))  # [B, n]
    best = scores.gather(1, rows[..., None].expand(-1, -1, classes)).flatten(1)  # [B, n K]
    values, pairs = best.topk(min(count, best.shape[1]))
    return values, rows.gather(1, pairs // classes), pairs % classes


def clip(boxes: Tensor, inside: Tensor) -> Tensor:
    """Boxes [B, N, 4] cut to the part that each picture fills; `inside` is Tensor[B, 2], height and width."""
    limit = inside.to(boxes, non_blocking=True).flip(1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limit)


def finish(
    candidates: Callable[[int], Candidates],
    sizes: Sizes,
    threshold: float,
    limit: int,
    classes: int,
    class_agnostic: bool = False,
) -> list[Detections]:
    """Drop the weaker of overlapping boxes, and bring the rest to the original pictures.

    Equals suppression over all candidates, although it looks at the best few first: a box can only be dropped
    by a better one, so once `limit` are kept, those below do not matter.

    The one synchronisation with the host, beside those of the kernel, tells how many are kept.

    Args:
        candidates: Gives the N best of each picture, for a given N (or as many as there are).
        sizes: Of the pictures, inside the batch and originally.
        threshold: IoU above which the weaker of two boxes of a class is dropped.
        limit: Most detections of a picture.
        classes: K.
        class_agnostic: Boxes of different classes compete too.
    """
    count = FIRST_TRY * limit
    while True:
        found = candidates(count)
        labels = torch.zeros_like(found.labels) if class_agnostic else found.labels
        keep = grouped_nms(found.boxes, found.scores, labels, classes, found.scores >= 0, threshold)
        keep &= keep.cumsum(1) <= limit
        kept = keep.sum(1)
        counts, lacking = torch.stack([kept, found.more & (kept < limit)]).tolist()
        if not any(lacking):
            break
        count *= MORE
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts, default=0)]
    boxes = found.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    scores, labels = found.scores.gather(1, order), found.labels.gather(1, order)
    boxes = _to_original(boxes, sizes)
    return [Detections(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts)]


def _to_original(boxes: Tensor, sizes: Sizes) -> Tensor:
    """Boxes [B, N, 4] from pixels of the batch to pixels of the files, and inside of those."""
    inside, original = (
        size.to(boxes, non_blocking=True).flip(1).repeat(1, 2)[:, None]
        for size in (sizes.inside, sizes.original)
    )  # [B, 1, 4]: x, y, x, y
    return torch.minimum((boxes * (original / inside)).clamp(min=0), original)
