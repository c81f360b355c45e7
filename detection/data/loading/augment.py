"""Augmentation policies: where a picture goes is drawn on its boxes alone, before a pixel is touched.

| policy       | window                                         | result                 | colours |
|--------------|------------------------------------------------|------------------------|---------|
| `none`       | the picture                                    | the recipe's           | –       |
| `flip`       | the picture                                    | the recipe's           | –       |
| `multiscale` | the picture                                    | short side 60 to 100 % | –       |
| `ssd`        | zoomed out half the time, then cut by overlap  | the recipe's           | distort |
| `ssd_legacy` | as `ssd`, but any cut with an object will do   | the recipe's           | distort |
| `ssdlite`    | cut by overlap                                 | the recipe's           | –       |
| `letterbox`  | the picture, stretched and scaled, on a canvas | a square               | HSV     |
| `crop`       | 85 to 100 % of the picture's area              | a square               | –       |

All but `none` mirror every second picture. A square has sides of `image_size`. "The recipe's" size follows
its `resize`, which also holds for validation, test and prediction whatever the policy: what is scored is
always the whole picture. With `letterbox`, `resize: keep` without `max_size` is its published evaluation, and
with a `max_size` of `image_size` the square's geometry without margins; with `crop`, `stretch` is the
square's. Colours are in `detection.data.loading.color_jitter`.

Sources: `flip`, `multiscale`, `ssd`, `ssdlite`: torchvision's detection references; `ssd`: Liu et al. 2015
(arXiv:1512.02325), section 2.2; `letterbox`, `crop`: the public implementations of Faster R-CNN (bubbliiiing)
and RetinaNet (xytpai) whose settings the recipes carry.
"""

import math

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.geometry import Floats, Geometry, Window, result_size
from detection.ops.boxes import iou
from detection.params.recipe import Recipe

OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Least IoU of a cut with some object; 1: leave the picture whole."""
LEGACY_OVERLAPS = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""What a well-known SSD really did, 77.43 on VOC2007: its list lacked 0.5, and a slip let every cut pass."""
TRIALS = 40
SHORT_SIDES = tuple(range(480, 801, 32))
"""Of `multiscale`, at an `image_size` of 800."""


def draw_geometry(
    recipe: Recipe, rng: np.random.Generator, height: int, width: int, boxes: Floats
) -> Geometry:
    """Draw what the recipe's policy does to a picture.

    Args:
        recipe: `augmentation`, and the size of the result.
        rng: Source of randomness.
        height: Of the picture.
        width: Of the picture.
        boxes: [M, 4] of its objects.
    """
    policy, window, side = recipe.augmentation, (0, 0, width, height), recipe.image_size
    if policy == "letterbox":
        window = _scaled_on_canvas(rng, height, width, side)
    elif policy == "crop":
        window = _crop_by_area(rng, height, width)
    elif policy in ("ssd", "ssd_legacy", "ssdlite"):
        if policy != "ssdlite" and rng.random() < 0.5:
            window = _zoom_out(rng, height, width)
        window = _crop_by_overlap(rng, window, boxes, LEGACY_OVERLAPS if policy == "ssd_legacy" else OVERLAPS)
    elif policy == "multiscale":
        side = round(side * int(rng.choice(SHORT_SIDES)) / SHORT_SIDES[-1])
    shape = "stretch" if policy in ("letterbox", "crop") else recipe.resize
    size = result_size(window[3] - window[1], window[2] - window[0], shape, side, recipe.max_size)
    return Geometry(window, *size, flip=policy != "none" and rng.random() < 0.5)


def kept(policy: str, geometry: Geometry, boxes: Floats) -> NDArray[np.bool_]:
    """[M]: which objects of a picture are still objects of the result.

    Cut by overlap: those whose centre is shown, and at least a pixel of the picture each way. `letterbox`:
    those with sides above one pixel of the result. `crop`: those with an area above 25 of them.
    """
    if policy in ("letterbox", "crop"):
        moved = geometry.boxes(boxes)
        sides = moved[:, 2:] - moved[:, :2]
        large: NDArray[np.bool_] = sides.min(axis=1) > 1 if policy == "letterbox" else sides.prod(axis=1) > 25
        return large
    x1, y1, x2, y2 = geometry.window
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    shown: NDArray[np.bool_] = (x1 < x) & (x < x2) & (y1 < y) & (y < y2)
    if policy in ("ssd", "ssd_legacy", "ssdlite"):
        shown &= np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1) >= 1
        shown &= np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1) >= 1
    return shown


def _zoom_out(rng: np.random.Generator, height: int, width: int) -> Window:
    """A canvas one to four times the picture's sides, the picture somewhere in it."""
    ratio = rng.uniform(1, 4)
    canvas_h, canvas_w = int(height * ratio), int(width * ratio)
    left, top = int((canvas_w - width) * rng.random()), int((canvas_h - height) * rng.random())
    return -left, -top, canvas_w - left, canvas_h - top


def _crop_by_overlap(
    rng: np.random.Generator, window: Window, boxes: Floats, overlaps: tuple[float, ...]
) -> Window:
    """A cut that holds the centre of some object, with an IoU that reaches a randomly drawn least overlap.

    All trials are drawn at once: a loop over them costs forty times as much.
    """
    x1, y1, x2, y2 = window
    width, height = x2 - x1, y2 - y1
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # [M, 2]
    while len(boxes):
        least = overlaps[rng.integers(len(overlaps))]
        if least >= 1:
            return window
        w = (width * rng.uniform(0.3, 1, TRIALS)).astype(int)
        h = (height * rng.uniform(0.3, 1, TRIALS)).astype(int)
        left = x1 + ((width - w) * rng.random(TRIALS)).astype(int)
        top = y1 + ((height - h) * rng.random(TRIALS)).astype(int)
        ratio = w / np.maximum(h, 1)
        cuts = np.stack([left, top, left + w, top + h], axis=1).astype(np.float32)
        fits = (w > 0) & (h > 0) & (ratio >= 0.5) & (ratio <= 2)
        held = (cuts[:, None, :2] < centres) & (centres < cuts[:, None, 2:])  # [TRIALS, M, 2]
        holds = held[..., 0] & held[..., 1]
        overlap = np.where(holds, iou(cuts, boxes), 0)
        good = np.flatnonzero(fits & holds.any(axis=1) & (overlap.max(axis=1) >= least))
        if len(good):
            a, b, c, d = (int(v) for v in cuts[good[0]])
            return a, b, c, d
    return window


def _scaled_on_canvas(rng: np.random.Generator, height: int, width: int, side: int) -> Window:
    """A square canvas, the picture on it with jittered aspect ratio, its longer side 1/4 to 2 times as long.

    The window is rounded to whole pixels of the picture; the boxes go by what comes of that.
    """
    ratio = width / height * rng.uniform(0.7, 1.3) / rng.uniform(0.7, 1.3)
    longer = rng.uniform(0.25, 2) * side
    scaled_h, scaled_w = (longer, longer * ratio) if ratio < 1 else (longer / ratio, longer)
    x1, x2 = _canvas_side(rng, width, scaled_w, side)
    y1, y2 = _canvas_side(rng, height, scaled_h, side)
    return x1, y1, x2, y2


def _canvas_side(rng: np.random.Generator, length: int, scaled: float, side: int) -> tuple[int, int]:
    """Where a canvas of `side` begins and ends along a picture of `length` that is `scaled` on it."""
    span = max(1, round(side * length / max(scaled, 1.0)))
    room = length - span  # negative: the canvas is the larger one, and the picture lies somewhere in it
    start = round(room * rng.random())
    return start, start + span


def _crop_by_area(rng: np.random.Generator, height: int, width: int) -> Window:
    """85 to 100 % of the area, sides at 3/4 to 4/3; the square in the middle where ten draws find no room."""
    for _ in range(10):
        area = rng.uniform(0.85, 1) * height * width
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
