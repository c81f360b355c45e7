"""Box coders: boxes as the deltas or edge distances, relative to anchors, that a network predicts.

Boxes are `x1, y1, x2, y2`. All functions take any leading dimensions and broadcast them.
"""

import math

import torch
from torch import Tensor

Weights = tuple[float, float, float, float]
"""Factors of dx, dy, dw and dh: one over the standard deviation that the targets are divided by."""
UNIT_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
MAX_LOG_SCALE = math.log(1000 / 16)
"""Upper limit of decoded dw and dh: a 16-pixel box grows to at most 1000 pixels. 16 is the stride of Faster
R-CNN's feature map and 1000 the longest side of its images; the limit keeps exp() from overflowing."""


def encode(boxes: Tensor, anchors: Tensor, weights: Weights = UNIT_WEIGHTS) -> Tensor:
    """Deltas from anchors to boxes (Girshick et al. 2013, arXiv:1311.2524, appendix C).

    With center (x, y) and sides (w, h), subscript a for the anchor:
    `dx = (x - x_a) / w_a`, `dy = (y - y_a) / h_a`, `dw = log(w / w_a)`, `dh = log(h / h_a)`, times `weights`.

    Invariant: `decode(encode(boxes, anchors), anchors) == boxes` as long as no side exceeds 62 times the anchor's.

    Args:
        boxes: Tensor[..., 4], of positive width and height.
        anchors: Tensor[..., 4], of positive width and height.
        weights: Factors of dx, dy, dw and dh.

    Returns:
        Tensor[..., 4].
    """
    x_a, y_a, w_a, h_a = _center_and_size(anchors)
    x, y, w, h = _center_and_size(boxes)
    wx, wy, ww, wh = weights
    deltas = [wx * (x - x_a) / w_a, wy * (y - y_a) / h_a, ww * torch.log(w / w_a), wh * torch.log(h / h_a)]
    return torch.stack(deltas, dim=-1)


def decode(deltas: Tensor, anchors: Tensor, weights: Weights = UNIT_WEIGHTS) -> Tensor:
    """Boxes from deltas and anchors; the inverse of `encode`.

    Args:
        deltas: Tensor[..., 4].
        anchors: Tensor[..., 4].
        weights: The weights passed to `encode`.

    Returns:
        Tensor[..., 4]; not clipped to the image.
    """
    x_a, y_a, w_a, h_a = _center_and_size(anchors)
    wx, wy, ww, wh = weights
    dx, dy, dw, dh = deltas.unbind(-1)
    x, y = dx / wx * w_a + x_a, dy / wy * h_a + y_a
    half_w = 0.5 * (torch.exp((dw / ww).clamp(max=MAX_LOG_SCALE)) * w_a)
    half_h = 0.5 * (torch.exp((dh / wh).clamp(max=MAX_LOG_SCALE)) * h_a)
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


def encode_edges(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Distances l, t, r, b from an anchor's center to a box's edges, in anchor sides (FCOS, eq. 1).

    `l = (x_a - x1) / w_a`, `t = (y_a - y1) / h_a`, `r = (x2 - x_a) / w_a`, `b = (y2 - y_a) / h_a`.

    Invariant: `decode_edges(encode_edges(boxes, anchors), anchors) == boxes`.

    Args:
        boxes: Tensor[..., 4].
        anchors: Tensor[..., 4], of positive width and height.

    Returns:
        Tensor[..., 4]; all positive where the center lies inside the box.
    """
    x, y, sides = _center_and_sides(anchors)
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x - x1, y - y1, x2 - x, y2 - y], dim=-1) / sides


def decode_edges(edges: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from edge distances and anchors; the inverse of `encode_edges`."""
    x, y, sides = _center_and_sides(anchors)
    left, top, right, bottom = (edges * sides).unbind(-1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def _center_and_sides(anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # not `_center_and_size`: torchvision's linear coder rounds the center this way
    x1, y1, x2, y2 = anchors.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return 0.5 * (x1 + x2), 0.5 * (y1 + y2), torch.stack([width, height, width, height], dim=-1)
