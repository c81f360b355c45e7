"""Boxes as offsets from other boxes, which is what a network predicts.

Boxes are `x1, y1, x2, y2`. All functions take any leading dimensions and broadcast them.
"""

import math

import torch
from torch import Tensor

Weights = tuple[float, float, float, float]
"""Of dx, dy, dw and dh: one over the standard deviation that the targets are divided by."""
UNIT: Weights = (1.0, 1.0, 1.0, 1.0)
LARGEST = math.log(1000 / 16)
"""Largest dw and dh that `decode` follows. 16 is the stride of the first detectors' one map and 1000 the
longest side of their pictures: no box need grow more, and exp() of a young network may overflow."""


def encode(boxes: Tensor, anchors: Tensor, weights: Weights = UNIT) -> Tensor:
    """Deltas that lead from anchors to boxes (Girshick et al. 2013, arXiv:1311.2524, appendix C).

    With centre (x, y) and sides (w, h), a for anchor:
    `dx = (x - x_a) / w_a`, `dy = (y - y_a) / h_a`, `dw = log(w / w_a)`, `dh = log(h / h_a)`, times `weights`.

    Invariant: `decode(encode(boxes, anchors), anchors) == boxes` as long as no side is over 62 times the
    anchor's.

    Args:
        boxes: Tensor[..., 4], each with some width and height.
        anchors: Tensor[..., 4], each with some width and height.
        weights: What dx, dy, dw and dh are multiplied with.

    Returns:
        Tensor[..., 4].
    """
    x_a, y_a, w_a, h_a = _centred(anchors)
    x, y, w, h = _centred(boxes)
    wx, wy, ww, wh = weights
    deltas = [
        wx * (x - x_a) / w_a,
        wy * (y - y_a) / h_a,
        ww * torch.log(w / w_a),
        wh * torch.log(h / h_a),
    ]
    return torch.stack(deltas, dim=-1)


def decode(deltas: Tensor, anchors: Tensor, weights: Weights = UNIT, largest: float = LARGEST) -> Tensor:
    """Boxes that deltas lead to from anchors; the inverse of `encode`.

    Args:
        deltas: Tensor[..., 4].
        anchors: Tensor[..., 4].
        weights: The ones that `encode` was given.
        largest: dw and dh above this are cut to it.

    Returns:
        Tensor[..., 4]; not clipped to any picture.
    """
    x_a, y_a, w_a, h_a = _centred(anchors)
    wx, wy, ww, wh = weights
    dx, dy, dw, dh = deltas.unbind(-1)
    x, y = dx / wx * w_a + x_a, dy / wy * h_a + y_a
    half_w = 0.5 * (torch.exp((dw / ww).clamp(max=largest)) * w_a)
    half_h = 0.5 * (torch.exp((dh / wh).clamp(max=largest)) * h_a)
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def encode_edges(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Distances l, t, r, b of a box's edges from an anchor's centre, in sides of the anchor (FCOS, eq. 1).

    `l = (x_a - x1) / w_a`, `t = (y_a - y1) / h_a`, `r = (x2 - x_a) / w_a`, `b = (y2 - y_a) / h_a`.

    Invariant: `decode_edges(encode_edges(boxes, anchors), anchors) == boxes`.

    Args:
        boxes: Tensor[..., 4].
        anchors: Tensor[..., 4], each with some width and height.

    Returns:
        Tensor[..., 4]; all positive where the centre lies inside the box.
    """
    x, y, sides = _centres_and_sides(anchors)
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x - x1, y - y1, x2 - x, y2 - y], dim=-1) / sides


def decode_edges(edges: Tensor, anchors: Tensor) -> Tensor:
    """Boxes whose edges lie so far from the anchors' centres; the inverse of `encode_edges`."""
    x, y, sides = _centres_and_sides(anchors)
    left, top, right, bottom = (edges * sides).unbind(-1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def _centres_and_sides(anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = anchors.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return 0.5 * (x1 + x2), 0.5 * (y1 + y2), torch.stack([width, height, width, height], dim=-1)
