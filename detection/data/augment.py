"""Augmentation policies: a window is drawn on the boxes, colour is changed at the final size.

`none`; `flip`; `ssd`: zoom out, crop by overlap, colours, flip (Liu et al. 2015, section 2.2); `ssdlite`:
crop by overlap, flip. Ranges are those of torchvision's references.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from detection.boxes import iou

Window = tuple[int, int, int, int]
OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # least IoU of the crop with some object; 1: leave it whole
TRIALS = 40


def draw_window(
    policy: str, rng: np.random.Generator, height: int, width: int, boxes: NDArray[np.float32]
) -> Window:
    """Draw the part of a picture that a policy shows.

    Args:
        policy: Name of the policy.
        rng: Source of randomness.
        height: Of the picture.
        width: Of the picture.
        boxes: [M, 4] of its objects.

    Returns:
        `x1, y1, x2, y2` in pixels; zooming out reaches beyond the picture.
    """
    window = (0, 0, width, height)
    if policy == "ssd" and rng.random() < 0.5:
        window = _zoom_out(rng, height, width)
    if policy in ("ssd", "ssdlite"):
        window = _crop_by_overlap(rng, window, boxes)
    return window


def inside(window: Window, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[M]: which boxes stay: those whose centre lies in the window."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (window[0] < x) & (x < window[2]) & (window[1] < y) & (y < window[3])


def change_colours(policy: str, rng: np.random.Generator, picture: Tensor) -> Tensor:
    """`ssd`: contrast, saturation, hue, brightness, channel order, each with probability one half.

    Args:
        policy: Name of the policy.
        rng: Source of randomness.
        picture: Tensor[3, H, W], uint8.
    """
    if policy != "ssd":
        return picture
    steps: list[tuple[Callable[..., Tensor], tuple[float, float]]] = [
        (F.adjust_brightness, (0.875, 1.125)),
        (F.adjust_contrast, (0.5, 1.5)),
        (F.adjust_saturation, (0.5, 1.5)),
        (F.adjust_hue, (-0.05, 0.05)),
    ]
    contrast_last = rng.random() < 0.5
    if contrast_last:
        steps.append(steps.pop(1))
    for change, (low, high) in steps:
        if rng.random() < 0.5:
            picture = change(picture, float(rng.uniform(low, high)))
    if rng.random() < 0.5:
        picture = picture[torch.from_numpy(rng.permutation(3))]
    return picture


def _zoom_out(rng: np.random.Generator, height: int, width: int) -> Window:
    """A canvas one to four times the picture's sides, the picture somewhere in it."""
    ratio = rng.uniform(1, 4)
    canvas_h, canvas_w = int(height * ratio), int(width * ratio)
    left, top = int((canvas_w - width) * rng.random()), int((canvas_h - height) * rng.random())
    return -left, -top, canvas_w - left, canvas_h - top


def _crop_by_overlap(rng: np.random.Generator, window: Window, boxes: NDArray[np.float32]) -> Window:
    """A crop whose IoU with some object reaches a randomly drawn least overlap.

    All trials are drawn at once: a loop over them costs forty times as much.
    """
    x1, y1, x2, y2 = window
    width, height = x2 - x1, y2 - y1
    while len(boxes):
        least = rng.choice(OVERLAPS)
        if least >= 1:
            return window
        w = (width * rng.uniform(0.3, 1, TRIALS)).astype(int)
        h = (height * rng.uniform(0.3, 1, TRIALS)).astype(int)
        left = x1 + ((width - w) * rng.random(TRIALS)).astype(int)
        top = y1 + ((height - h) * rng.random(TRIALS)).astype(int)
        ratio = w / np.maximum(h, 1)
        crops = np.stack([left, top, left + w, top + h], axis=1)
        fits = (w > 0) & (h > 0) & (ratio >= 0.5) & (ratio <= 2)
        centres = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], axis=1)
        held = (crops[:, None, :2] < centres) & (centres < crops[:, None, 2:])  # [TRIALS, M, 2]
        holds = held[..., 0] & held[..., 1]
        overlap = np.where(holds, iou(crops.astype(np.float32), boxes), 0)
        good = np.flatnonzero(fits & holds.any(axis=1) & (overlap.max(axis=1) >= least))
        if len(good):
            a, b, c, d = (int(v) for v in crops[good[0]])
            return a, b, c, d
    return window
