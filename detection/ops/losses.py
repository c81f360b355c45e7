"""Losses per anchor over padded batches: masked-out anchors contribute neither loss nor gradient.

Letters: B images, A anchors (or samples) of an image, K classes.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detection.ops.box_coder import UNIT_WEIGHTS, Weights, decode, encode

FOCAL_ALPHA = 0.25  # as published; the published gamma of 2 is built into `_Focal`'s squares
MIN_AREA = 1e-7  # square pixels added to GIoU's denominators


def focal_loss(logits: Tensor, labels: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
    """Focal loss of sigmoid outputs (Lin et al. 2017, arXiv:1708.02002, section 3).

    `-alpha (1 - p)^2 log p` for the anchor's own class, `-(1 - alpha) p^2 log(1 - p)` for all others, with
    p = sigmoid(logit), summed over the classes.

    Equals `torchvision.ops.sigmoid_focal_loss` on one-hot targets, without creating them; the backward pass
    recomputes the derivative from the logits, so that no other tensor of their size is kept.

    Args:
        logits: Tensor[B, A, K].
        labels: Tensor[B, A], int64 in 0..K-1: class of the positives.
        positive: Tensor[B, A], bool: anchors matched to an object; all others are background.
        mask: Tensor[B, A], bool: anchors that count; the others are ignored.

    Returns:
        Tensor[B, A].
    """
    loss: Tensor = _Focal.apply(logits, labels, positive & mask, mask)
    return loss


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels, positive, mask)
        own = logits.gather(2, labels[..., None])[..., 0]  # [B, A]
        loss = F.softplus(logits).mul_(logits.sigmoid().square_()).sum(2).mul_(1 - FOCAL_ALPHA)
        as_positive = FOCAL_ALPHA * F.softplus(-own) * (-own).sigmoid().square_()
        as_negative = (1 - FOCAL_ALPHA) * F.softplus(own) * own.sigmoid().square_()
        return (loss + positive * (as_positive - as_negative)) * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, positive, mask = ctx.saved_tensors
        grad = (grad * mask)[..., None]
        own = logits.gather(2, labels[..., None])  # [B, A, 1]
        slope = _slope(logits).mul_(grad * (1 - FOCAL_ALPHA))
        change = (-FOCAL_ALPHA * _slope(-own) - (1 - FOCAL_ALPHA) * _slope(own)) * grad * positive[..., None]
        return slope.scatter_add_(2, labels[..., None], change), None, None, None


def _slope(x: Tensor) -> Tensor:
    """Derivative of `sigmoid(x)^2 softplus(x)`: `p^2 (2 (1 - p) softplus(x) + p)`."""
    p = x.sigmoid()
    return F.softplus(x).mul_(1 - p).mul_(2).add_(p).mul_(p.square_())


BoxLoss = Literal["l1", "smooth_l1", "giou"]


def box_loss(
    loss_type: BoxLoss,
    deltas: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    positive: Tensor,
    weights: Weights = UNIT_WEIGHTS,
    beta: float = 1.0,
) -> Tensor:
    """Box regression loss of the positives.

    * `l1` and `smooth_l1` compare deltas and sum over the four (Girshick 2015, arXiv:1504.08083, eq. 2).
    * `giou` compares the decoded boxes, see `giou_loss`.

    Args:
        loss_type: Type of loss.
        deltas: Tensor[B, A, 4], predicted.
        boxes: Tensor[B, A, 4], targets; not read where `positive` is false.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].
        positive: Tensor[B, A], bool.
        weights: Weights of the box coder.
        beta: Delta at which `smooth_l1` turns from quadratic to linear.

    Returns:
        Tensor[B, A]; 0 where `positive` is false.
    """
    if loss_type == "giou":
        loss = giou_loss(decode(deltas, anchors, weights), boxes)
    else:
        # masked before the loss: the gradient of a masked NaN would be NaN
        targets = torch.where(positive[..., None], encode(boxes, anchors, weights), 0.0)  # [B, A, 4]
        if loss_type == "l1":
            loss = F.l1_loss(deltas, targets, reduction="none").sum(2)
        else:
            loss = F.smooth_l1_loss(deltas, targets, beta=beta, reduction="none").sum(2)
    return torch.where(positive, loss, 0.0)


def giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """One minus the generalized IoU of pairs of boxes (Rezatofighi et al. 2019, arXiv:1902.09630).

    `GIoU = I / U - (C - U) / C` with the areas of intersection, union and the smallest enclosing box. Unlike
    the IoU it has a gradient for boxes that do not overlap.

    Equals `torchvision.ops.generalized_box_iou_loss`, which indexes with a mask and so synchronizes.

    Args:
        a: Tensor[..., 4], ordered corners.
        b: Tensor[..., 4], ordered corners.

    Returns:
        Tensor[...], 0 to 2.
    """
    a_low, a_high, b_low, b_high = a[..., :2], a[..., 2:], b[..., :2], b[..., 2:]
    intersection = _area((torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0))
    union = _area(a_high - a_low) + _area(b_high - b_low) - intersection
    enclosing = _area(torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low))
    return 1 - (intersection / (union + MIN_AREA) - (enclosing - union) / (enclosing + MIN_AREA))


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values where the mask is true; NaN elsewhere affects neither sum nor gradient."""
    masked = torch.where(mask, values, 0.0)
    return masked.sum() if dim is None else masked.sum(dim)
