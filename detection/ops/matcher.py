"""Which anchor answers for which object: over the whole batch, without a word to the host.

Letters: B pictures in a batch, M most objects of one picture, A anchors (or proposals).
Boxes are float32 `x1, y1, x2, y2`. Objects are padded to M with a mask; anchors are the same for all pictures
([A, 4]) or each picture's own ([B, A, 4]). Nothing here has a size that depends on data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BACKGROUND = -1
"""A match that is no object."""
IGNORE = -2
"""A match that counts for nothing: too good for background, not good enough for its object."""
AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""IoUs computed at a time: they stay in a CPU's cache, and a batch of large pictures fits a GPU."""


def batched_iou(truth: Tensor, mask: Tensor, anchors: Tensor) -> Tensor:
    """Intersection over union of every object with every anchor of its picture.

    Args:
        truth: Tensor[B, M, 4], objects.
        mask: Tensor[B, M], bool, which of them are there.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].

    Returns:
        Tensor[B, M, A], 0 to 1; 0 where both boxes are empty, -1 for objects that are not there.
    """
    x1, y1, x2, y2 = truth[..., None].unbind(2)  # [B, M, 1]
    a_x1, a_y1, a_x2, a_y2 = _per_picture(anchors)[:, None].unbind(3)  # [B or 1, 1, A]
    shared = torch.minimum(x2, a_x2).sub_(torch.maximum(x1, a_x1)).clamp_(min=0)
    shared.mul_(torch.minimum(y2, a_y2).sub_(torch.maximum(y1, a_y1)).clamp_(min=0))
    union = ((x2 - x1) * (y2 - y1) + (a_x2 - a_x1) * (a_y2 - a_y1)).sub_(shared)
    iou = shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))
    return iou.masked_fill_(~mask[..., None], -1)


@torch.no_grad()
def match(
    truth: Tensor,
    mask: Tensor,
    anchors: Tensor,
    high: float,
    low: float,
    best: Literal["none", "all_ties", "unique"],
    allowed: Tensor | None = None,
) -> Tensor:
    """Match each anchor with the object that it overlaps most, or with none.

    An anchor whose largest IoU is at least `high` is matched with the first object that has it; below `low`
    it is background, in between nothing. An object that no anchor fits would then never be learnt, so it may
    claim its best anchors, however bad (Ren et al. 2015, section 3.1.2):

    * `all_ties`: every anchor that ties for an object's largest IoU is matched, with the object that the
      *anchor* overlaps most. Equals torchvision's `Matcher(high, low, allow_low_quality_matches=True)`.
    * `unique`: the first of them is matched with that object; where two objects claim one anchor, the later
      one gets it. Equals torchvision's `SSDMatcher(high)` for `low == high` (Liu et al. 2015, section 2.2).

    For example, with `high=0.7, low=0.3`, IoUs of one object [0.1, 0.5, 0.6] become [-1, -2, -2], and with
    either claim [-1, -2, 0].

    An object that no anchor overlaps at all claims nothing. (torchvision gives it every anchor that overlaps
    no object, or the first anchor; it takes a degenerate box to get there.)

    Args:
        truth: Tensor[B, M, 4], objects.
        mask: Tensor[B, M], bool, which of them are there; a picture may have none.
        anchors: Tensor[A, 4] or Tensor[B, A, 4].
        high: Least IoU of a match.
        low: Least IoU of what is no background; at most `high`.
        best: Whether objects claim their best anchors.
        allowed: Tensor[A] or Tensor[B, A], bool: anchors that take part. The others become `IGNORE`, and are
            no object's best.

    Returns:
        Tensor[B, A], int64: an object's number in 0..M-1, `BACKGROUND` or `IGNORE`.
    """
    assert low <= high, "low is at most high"
    batch, many = truth.shape[0], anchors.shape[-2]
    value = truth.new_full((batch, many), -1.0)
    index = torch.zeros(batch, many, dtype=torch.int64, device=truth.device)
    forced = torch.full_like(index, BACKGROUND)
    if allowed is not None:
        allowed = allowed.expand(batch, many)
    for first, part in _parts(truth, many):
        iou = batched_iou(truth[:, part], mask[:, part], anchors)  # [B, m, A]
        part_value, part_index = iou.max(dim=1)
        better = part_value > value  # strictly, so that the first of equals stays
        value = torch.where(better, part_value, value)
        index = torch.where(better, part_index + first, index)
        if best != "none":
            forced = torch.maximum(forced, _claims(iou, first, best, allowed))
    matches = torch.where(value >= high, index, torch.where(value < low, BACKGROUND, IGNORE))
    if best != "none":
        matches = torch.where(forced >= 0, index if best == "all_ties" else forced, matches)
    return matches if allowed is None else torch.where(allowed, matches, IGNORE)


def _claims(iou: Tensor, first: int, best: Literal["all_ties", "unique"], allowed: Tensor | None) -> Tensor:
    """Tensor[B, A]: the number of an object that claims the anchor (the last of several), or negative."""
    if allowed is not None:
        iou = iou.masked_fill(~allowed[:, None], -1)
    most, where = iou.max(dim=2)  # [B, m]
    number = torch.arange(first, first + iou.shape[1], device=iou.device).expand(most.shape)
    number = torch.where(most > 0, number, BACKGROUND)
    if best == "all_ties":
        claimed = torch.where(iou == most[..., None], number[..., None], BACKGROUND)
        return claimed.amax(dim=1)
    nobody = torch.full_like(iou[:, 0], BACKGROUND, dtype=torch.int64)
    return nobody.scatter_reduce(1, where, number, reduce="amax")


@torch.no_grad()
def match_centers(truth: Tensor, mask: Tensor, anchors: Tensor, counts: list[int], radius: float) -> Tensor:
    """FCOS's assignment (Tian et al. 2019, arXiv:1904.01355, section 3.2, with centre sampling).

    A place answers for an object if it lies inside of its box, within `radius` strides of the box's centre in
    both directions, and if the farthest edge is between 4 and 8 strides away: nearer for the first level too,
    farther for the last. Of several such objects it takes the smallest. Equals torchvision's `FCOS`, down to
    its areas' float32 resolution: areas up to 8 square pixels apart count as equal, and the first wins.

    Args:
        truth: Tensor[B, M, 4], objects.
        mask: Tensor[B, M], bool, which of them are there; a picture may have none.
        anchors: Tensor[A, 4], squares as wide as the stride around each place.
        counts: Anchors of each level.
        radius: In strides.

    Returns:
        Tensor[B, A], int64: an object's number in 0..M-1, or `BACKGROUND`.
    """
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)  # [A]
    stride = anchors[:, 2] - anchors[:, 0]
    nearest, farthest = stride * 4, stride * 8
    nearest[: counts[0]] = 0
    farthest[-counts[-1] :] = float("inf")
    value = truth.new_full((truth.shape[0], len(anchors)), 1e-5)
    index = torch.full(value.shape, BACKGROUND, device=truth.device)
    for first, part in _parts(truth, len(anchors)):
        x1, y1, x2, y2 = truth[:, part, :, None].unbind(2)  # [B, m, 1]
        edges = torch.stack([x - x1, y - y1, x2 - x, y2 - y])  # [4, B, m, A]
        farthest_edge = edges.amax(0)
        away = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
        suits = (edges.amin(0) > 0) & (away < radius * stride) & mask[:, part, None]
        suits &= (farthest_edge > nearest) & (farthest_edge < farthest)
        smallness = suits * (1e8 - (x2 - x1) * (y2 - y1))
        part_value, part_index = smallness.max(dim=1)
        better = part_value > value
        value = torch.where(better, part_value, value)
        index = torch.where(better, part_index + first, index)
    return index


@dataclass(frozen=True, slots=True)
class Sample:
    """Some anchors of each picture: S a picture, positives first, padded at the end."""

    index: Tensor
    """Tensor[B, S], int64: which anchors; anything where `valid` is false."""
    positive: Tensor
    """Tensor[B, S], bool: which of them are positives."""
    valid: Tensor
    """Tensor[B, S], bool: which of them are there, as a picture may have too few."""


@torch.no_grad()
def sample(
    positive: Tensor, negative: Tensor, count: int, positive_fraction: float, keys: Tensor | None = None
) -> Sample:
    """Draw positives and negatives at random, without replacement.

    At most `int(count * positive_fraction)` positives; negatives fill the rest. As torchvision's
    `BalancedPositiveNegativeSampler`, but for the dice.

    Args:
        positive: Tensor[B, A], bool.
        negative: Tensor[B, A], bool; never true with `positive`.
        count: Anchors a picture.
        positive_fraction: Of `count`, 0 to 1.
        keys: Tensor[B, A], in 0..1: the smallest are drawn. None: random ones.
    """
    if keys is None:
        keys = torch.rand(positive.shape, device=positive.device)
    many = positive.shape[1]
    most = min(int(count * positive_fraction), many)
    p_key, p_index = keys.masked_fill(~positive, 2.0).topk(most, largest=False)  # rising
    n_key, n_index = keys.masked_fill(~negative, 2.0).topk(min(count, many), largest=False)
    p_valid = p_key < 2.0
    left = count - p_valid.sum(1, keepdim=True)
    n_valid = (n_key < 2.0) & (torch.arange(n_key.shape[1], device=keys.device) < left)
    valid = torch.cat([p_valid, n_valid], dim=1)
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]  # the valid ones first
    index = torch.cat([p_index, n_index], dim=1).gather(1, order)
    valid = valid.gather(1, order)
    return Sample(index, (order < most) & valid, valid)


def _per_picture(anchors: Tensor) -> Tensor:
    return anchors if anchors.dim() == 3 else anchors[None]


def _parts(truth: Tensor, anchors: int) -> Iterator[tuple[int, slice]]:
    """Slices of the M objects, so many that a part's IoUs with the anchors fit `AT_ONCE`."""
    batch, objects = truth.shape[:2]
    size = max(1, AT_ONCE.get(truth.device.type, AT_ONCE["cuda"]) // max(1, batch * anchors))
    for first in range(0, objects, size):
        yield first, slice(first, first + size)
