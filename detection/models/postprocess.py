"""From scored boxes to detections: non-maximum suppression over the batch, and the way back to the files.

Letters: B pictures in a batch, N candidates of one picture, A anchors, K classes.

Picking rows of a padded batch.

Candidates of a detector with a pyramid: the best of each level, decoded only as far as they are looked at.

Letters: B pictures in a batch, A anchors of all levels, K classes, N candidates of one picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detection.models.detector import Detections, ImageSizes
from detection.ops.nms import grouped_nms

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


def topk_scores(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
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


def nms_and_rescale(
    candidates: Callable[[int], Candidates],
    sizes: ImageSizes,
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


def _to_original(boxes: Tensor, sizes: ImageSizes) -> Tensor:
    """Boxes [B, N, 4] from pixels of the batch to pixels of the files, and inside of those."""
    inside, original = (
        size.to(boxes, non_blocking=True).flip(1).repeat(1, 2)[:, None]
        for size in (sizes.resized, sizes.original)
    )  # [B, 1, 4]: x, y, x, y
    return torch.minimum((boxes * (original / inside)).clamp(min=0), original)


def batched_gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, S, ...] of `rows` [B, N, ...] at `index` [B, S]: of each picture its own."""
    wide = index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:])
    return rows.gather(1, wide)


def valid_width(mask: Tensor) -> int:
    """How many columns of a mask [B, N], whose true ones come first, are worth computing with.

    On a CPU, those that some picture uses. Elsewhere all: to know better is to wait for the device.
    """
    return int(mask.sum(dim=1).max()) if mask.device.type == "cpu" else mask.shape[1]


Decode = Callable[[Tensor, Tensor], Tensor]
"""Boxes [B, N, 4] of outputs [B, N, 4] at anchors [B, N, 4]."""


def topk_per_level(
    scores: Tensor,
    outputs: Tensor,
    anchors: Tensor,
    counts: list[int],
    decode: Decode,
    sizes: ImageSizes,
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
        values, rows, labels = topk_scores(level, min(per_level, level[0].numel()))
        parts.append((values, rows + first, labels))
        first += level.shape[1]
    values, rows, labels = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    values, order = torch.where(values > threshold, values, -1.0).sort(dim=1, descending=True, stable=True)
    rows, labels = rows.gather(1, order), labels.gather(1, order)

    def best(count: int) -> Candidates:
        part = rows[:, :count]
        picked = outputs.gather(1, part[..., None].expand(-1, -1, 4))
        boxes = clip(decode(picked, anchors[part]), sizes.resized)
        more = (values[:, count:] >= 0).any(1)
        return Candidates(boxes, values[:, :count], labels[:, :count], more)

    return best
