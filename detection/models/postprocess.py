"""Postprocessing: candidate selection, non-maximum suppression, and rescaling to the original images.

Each `topk_*` function returns a `SelectCandidates`: a function of N that returns the N best candidates of
each image, decoded only then. `nms_and_rescale` asks for few candidates first and for more only if needed.

Letters: B images, A anchors of all levels (or proposals), K classes, N candidates of an image, S indices.
Boxes are float32 `x1, y1, x2, y2`, in pixels of the batch unless noted otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detection.models.detector import Detections, ImageSizes
from detection.ops.nms import grouped_nms

CANDIDATES_PER_DETECTION = 4  # candidates of the first try, as a multiple of the detections per image
CANDIDATES_GROWTH = 8  # factor for each further try
MIN_SIZE = 1e-2  # minimum side of a box from a proposal, in pixels

Decode = Callable[[Tensor, Tensor], Tensor]
"""Boxes [B, N, 4] from outputs [B, N, 4] and anchors [B, N, 4]."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The N best-scored boxes of each image, by descending score."""

    boxes: Tensor
    """Tensor[B, N, 4], clipped to the images if the recipe clips before NMS."""
    scores: Tensor
    """Tensor[B, N], descending, except that padding and dropped boxes have -1."""
    labels: Tensor
    """Tensor[B, N], int64."""
    more: Tensor
    """Tensor[B], bool: the image may have further candidates, with lower scores."""


SelectCandidates = Callable[[int], Candidates]
"""The N best candidates of each image, or all if there are fewer, for a given N."""


def batched_gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [B, S, ...] of `rows` [B, N, ...] at `index` [B, S], image by image."""
    index = index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:])
    return rows.gather(1, index)


def valid_width(mask: Tensor) -> int:
    """Number of columns of a mask [B, N] to compute with, if its true values come first in each row.

    On a CPU, the largest number of true values in a row, at least 1: layers get no empty batch. On other devices N,
    as counting would synchronize.
    """
    return max(1, int(mask.sum(dim=1).max())) if mask.device.type == "cpu" else mask.shape[1]


def clip(boxes: Tensor, inside: Tensor) -> Tensor:
    """Clip boxes [B, N, 4] to the images; `inside` is Tensor[B, 2], height and width in the batch."""
    limit = inside.to(boxes, non_blocking=True).flip(1).repeat(1, 2)[:, None]  # [B, 1, 4]: x, y, x, y
    return torch.minimum(boxes.clamp(min=0), limit)


def topk_scores(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of an anchor and a class with the highest scores.

    They are searched among the `count` anchors with the highest maximum over the classes, which contain them
    all: five times as fast on a CPU as sorting all pairs.

    Args:
        scores: Tensor[B, A, K].
        count: Number of pairs, at most A * K.

    Returns:
        Score (descending), anchor and class, each Tensor[B, count].
    """
    _, anchors, classes = scores.shape
    _, rows = scores.amax(2).topk(min(count, anchors))  # [B, n]
    best = batched_gather(scores, rows).flatten(1)  # [B, n * K]
    values, pairs = best.topk(min(count, best.shape[1]))
    return values, rows.gather(1, pairs // classes), pairs % classes


def topk_per_level(
    scores: Tensor,
    outputs: Tensor,
    anchors: Tensor,
    counts: list[int],
    decode: Decode,
    sizes: ImageSizes | None,
    per_level: int,
    threshold: float,
) -> SelectCandidates:
    """Candidates of a feature pyramid: at most `per_level` pairs of anchor and class from each level.

    Args:
        scores: Tensor[B, A, K], 0 to 1.
        outputs: Tensor[B, A, 4], box outputs.
        anchors: Tensor[A, 4].
        counts: Number of anchors per level.
        decode: From outputs and anchors to boxes.
        sizes: Sizes of the images; None: boxes are not clipped.
        per_level: Maximum number of candidates per level.
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

    def select(count: int) -> Candidates:
        index = rows[:, :count]
        boxes = decode(batched_gather(outputs, index), anchors[index])
        boxes = clip(boxes, sizes.resized) if sizes else boxes
        return Candidates(boxes, values[:, :count], labels[:, :count], (values[:, count:] >= 0).any(1))

    return select


def topk_per_class(
    scores: Tensor,
    outputs: Tensor,
    anchors: Tensor,
    decode: Decode,
    sizes: ImageSizes | None,
    per_class: int,
    threshold: float,
) -> SelectCandidates:
    """Candidates of SSD: at most `per_class` anchors of each class; see `topk_per_level`."""
    total, classes = scores[0].numel(), scores.shape[2]

    def select(count: int) -> Candidates:
        values, rows, labels = topk_scores(scores, min(count, total))
        more = (values[:, -1] > threshold) & (count < total)
        valid = values > threshold
        if count > per_class:
            valid &= rank_in_class(labels, classes) < per_class
        if count > per_class * classes:  # NMS compares all pairs, on a GPU those of dropped candidates too
            order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, : per_class * classes]
            values, rows, labels, valid = (column.gather(1, order) for column in (values, rows, labels, valid))
        boxes = decode(batched_gather(outputs, rows), anchors[rows])
        boxes = clip(boxes, sizes.resized) if sizes else boxes
        return Candidates(boxes, torch.where(valid, values, -1.0), labels, more)

    return select


def topk_of_proposals(
    scores: Tensor, deltas: Tensor, proposals: Tensor, decode: Decode, sizes: ImageSizes | None, threshold: float
) -> SelectCandidates:
    """Candidates of the second stage; equal scores keep the order of their proposals.

    Args:
        scores: Tensor[B, A, K], 0 to 1, of A proposals.
        deltas: Tensor[B, A, K + 1, 4], one box per class, the background's first.
        proposals: Tensor[B, A, 4], best first.
        decode: From deltas and proposals to boxes.
        sizes: Sizes of the images; None: boxes are not clipped.
        threshold: Scores must be above it.
    """
    _, total, classes = scores.shape

    def select(count: int) -> Candidates:
        values, rows, labels = topk_scores(scores, min(count + 1, total * classes))
        pairs, order = (rows * classes + labels).sort(dim=1)
        values, ranked = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        pairs = pairs.gather(1, ranked)
        valid = values > threshold
        more = valid[:, count:].any(dim=1)
        values, valid = values[:, :count], valid[:, :count]
        rows, labels = pairs[:, :count] // classes, pairs[:, :count] % classes
        own = rows * (classes + 1) + labels + 1  # index of the class's deltas
        boxes = decode(batched_gather(deltas.flatten(1, 2), own), batched_gather(proposals, rows))
        boxes = clip(boxes, sizes.resized) if sizes else boxes
        valid = valid & (boxes[..., 2:] - boxes[..., :2] >= MIN_SIZE).all(dim=2)
        return Candidates(boxes, torch.where(valid, values, -1.0), labels, more)

    return select


def rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """Tensor[B, N]: number of earlier candidates with the same label, for labels Tensor[B, N]."""
    order = labels.argsort(dim=1, stable=True)
    position = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    counts = torch.zeros(len(labels), classes, dtype=torch.int64, device=labels.device)
    counts = counts.scatter_add(1, labels, torch.ones_like(labels))
    start = (counts.cumsum(1) - counts).gather(1, labels.gather(1, order))
    return torch.empty_like(labels).scatter_(1, order, position - start)


def nms_and_rescale(
    select: SelectCandidates,
    sizes: ImageSizes,
    threshold: float,
    limit: int,
    classes: int,
    class_agnostic: bool = False,
) -> list[Detections]:
    """Non-maximum suppression by class, and rescaling to the original images.

    Equals suppression over all candidates, although it starts with the best few: a box can only be suppressed
    by one of a higher score, so once `limit` boxes are kept, those below do not matter.

    The only synchronization, besides the kernel's, reads the number of kept boxes.

    Args:
        select: Returns the best candidates of each image.
        sizes: Sizes of the images in the batch and originally.
        threshold: IoU above which the box with the lower score is dropped.
        limit: Maximum number of detections per image.
        classes: K.
        class_agnostic: Boxes of different classes suppress each other too.
    """
    count = CANDIDATES_PER_DETECTION * limit
    while True:
        candidates = select(count)
        scores, labels = candidates.scores, candidates.labels
        group = torch.zeros_like(labels) if class_agnostic else labels
        keep = grouped_nms(candidates.boxes, scores, group, classes, scores >= 0, threshold)
        keep &= keep.cumsum(1) <= limit
        kept = keep.sum(1)
        counts, lacking = torch.stack([kept, candidates.more & (kept < limit)]).tolist()
        if not any(lacking):
            break
        count *= CANDIDATES_GROWTH
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts, default=0)]
    boxes = _to_original(batched_gather(candidates.boxes, order), sizes)
    scores, labels = scores.gather(1, order), labels.gather(1, order)
    return [Detections(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts)]


def _to_original(boxes: Tensor, sizes: ImageSizes) -> Tensor:
    """Rescale boxes [B, N, 4] from the batch to the original images, and clip them."""
    inside, original = (
        size.to(boxes, non_blocking=True).flip(1).repeat(1, 2)[:, None] for size in (sizes.resized, sizes.original)
    )  # [B, 1, 4]: x, y, x, y
    return torch.minimum((boxes * (original / inside)).clamp(min=0), original)
