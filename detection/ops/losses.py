"""Losses per anchor, over padded batches: what a mask leaves out costs nothing and has no gradient.

Letters: B pictures in a batch, A anchors, K classes.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detection.ops.box_coder import Weights, decode, encode

ALPHA = 0.25  # of the focal loss, as published; its gamma of 2 is built into `_Focal`'s squares
EPSILON = 1e-7  # square pixels, below which an area is none


def focal_loss(logits: Tensor, labels: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Focal loss of sigmoid outputs (Lin et al. 2017, arXiv:1708.02002, section 3).

    `-alpha (1 - p)^2 log p` for an anchor's own class, `-(1 - alpha) p^2 log(1 - p)` for all others, with
    p = sigmoid(logit), summed over the classes.

    Equals `torchvision.ops.sigmoid_focal_loss` on one-hot targets, which are not made here; the backward pass
    computes the derivative anew from the logits, so that nothing of their size is kept.

    Args:
        logits: Tensor[B, A, K].
        labels: Tensor[B, A], int64, 0..K-1: the class of positives.
        positive: Tensor[B, A], bool: which anchors are of their class; the others are of none.
        counted: Tensor[B, A], bool: which anchors enter at all.

    Returns:
        Tensor[B, A].
    """
    loss: Tensor = _Focal.apply(logits, labels, positive & counted, counted)
    return loss


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels, positive, counted)
        own = logits.gather(2, labels[..., None])[..., 0]
        loss = F.softplus(logits).mul_(logits.sigmoid().square_()).sum(2).mul_(1 - ALPHA)
        right = ALPHA * F.softplus(-own) * (-own).sigmoid().square_()
        wrong = (1 - ALPHA) * F.softplus(own) * own.sigmoid().square_()
        return (loss + positive * (right - wrong)) * counted

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, positive, counted = ctx.saved_tensors
        grad = (grad * counted)[..., None]
        own = logits.gather(2, labels[..., None])
        slope = _slope(logits).mul_(grad * (1 - ALPHA))
        change = (-ALPHA * _slope(-own) - (1 - ALPHA) * _slope(own)) * grad * positive[..., None]
        return slope.scatter_add_(2, labels[..., None], change), None, None, None


def _slope(x: Tensor) -> Tensor:
    """The derivative of `sigmoid(x)^2 softplus(x)`: `p^2 (2 (1 - p) softplus(x) + p)`."""
    p = x.sigmoid()
    return F.softplus(x).mul_(1 - p).mul_(2).add_(p).mul_(p.square_())


BoxLoss = Literal["l1", "smooth_l1", "giou"]


def box_loss(kind: BoxLoss, deltas: Tensor, boxes: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
    """How far predicted deltas are from the ones that lead to the boxes.

    * `l1` and `smooth_l1` (beta 1) compare deltas, and are summed over the four.
    * `giou` compares the boxes that the deltas lead to, see `giou_loss`.

    Args:
        kind: Which.
        deltas: Tensor[B, A, 4], predicted.
        boxes: Tensor[B, A, 4], where to; the anchor itself where there is no object.
        anchors: Tensor[A, 4].
        weights: Of the coding.

    Returns:
        Tensor[B, A].
    """
    if kind == "giou":
        return giou_loss(decode(deltas, anchors, weights), boxes)
    function = F.l1_loss if kind == "l1" else F.smooth_l1_loss
    return function(deltas, encode(boxes, anchors, weights), reduction="none").sum(2)


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """One minus the generalised IoU of pairs of boxes (Rezatofighi et al. 2019, arXiv:1902.09630).

    `GIoU = I / U - (C - U) / C` with the areas of intersection, union and the smallest box around both. It
    pulls at boxes that do not overlap, too.

    Equals `torchvision.ops.generalized_box_iou_loss`, which selects rows by a mask and so waits for the host.

    Args:
        a: Tensor[..., 4], ordered corners.
        b: Tensor[..., 4], ordered corners.

    Returns:
        Tensor[...], 0 to 2.
    """
    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    shared = _area((torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0))
    union = _area(a_high - a_low) + _area(b_high - b_low) - shared
    around = _area(torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low))
    return 1 - (shared / (union + EPSILON) - (around - union) / (around + EPSILON))


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values under a mask; whatever stands elsewhere, be it NaN, is no part of it."""
    kept = torch.where(mask, values, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)
