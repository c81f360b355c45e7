"""Augmentation policies. The geometry is drawn from the boxes alone, before a pixel is touched.

| policy       | window                                             | result                   | colors          |
|--------------|----------------------------------------------------|--------------------------|-----------------|
| `none`       | whole image                                        | the recipe's size        | -               |
| `flip`       | whole image                                        | the recipe's size        | -               |
| `multiscale` | whole image                                        | short side 60 to 100 %   | -               |
| `ssd`        | zoom out with probability 0.5, then IoU crop       | the recipe's size        | distortion      |
| `ssd_legacy` | as `ssd`, but the crop needs no minimum IoU        | the recipe's size        | its original's  |
| `ssdlite`    | IoU crop                                           | the recipe's size        | -               |
| `letterbox`  | image stretched to about a square, scaled, padded  | square of `image_size`   | HSV jitter      |
| `crop`       | 85 to 100 % of the image area                      | square of `image_size`   | -               |

All policies but `none` flip horizontally with probability 0.5. The recipe's size follows its `resize`, which
also holds for validation, test and prediction under every policy: they always see the whole image. With
`letterbox`, the published evaluation is `resize: keep` without `max_size`; a `max_size` of `image_size`
gives the geometry of the square without padding. With `crop`, `stretch` gives the geometry of the square.
`detection.data.loading.color_jitter` has the colors.

Sources: `flip`, `multiscale`, `ssd`, `ssdlite`: torchvision's detection references; `ssd`: Liu et al. 2015
(arXiv:1512.02325), section 2.2; `letterbox`, `crop`: the public implementations of Faster R-CNN (bubbliiiing,
commit 51f9b62) and RetinaNet (xytpai) whose settings the recipes use.

Letters: M objects of the image, K trials of a crop.
"""

import math

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.geometry import Floats, Geometry, Window, result_size
from detection.ops.boxes import iou
from detection.params.recipe import Recipe

MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Minimum IoU of a crop with some object; 1 keeps the whole image."""
LEGACY_MIN_IOUS = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""Effective values of a widely used SSD (77.43 on VOC2007): its list lacks 0.5, a bug accepts every crop."""
CROP_TRIALS = 40
MULTISCALE_SIDES = tuple(range(480, 801, 32))
"""Short sides of `multiscale` at an `image_size` of 800."""
RATIOS = (3 / 4, 4 / 3)
"""Smallest and largest width / height of an area crop."""


def draw_geometry(recipe: Recipe, rng: np.random.Generator, height: int, width: int, boxes: Floats) -> Geometry:
    """Draw the geometric transform of an image with boxes [M, 4] by the recipe's policy and size."""
    policy, window, side = recipe.augmentation, (0, 0, width, height), recipe.image_size
    if policy == "letterbox":
        window = _letterbox(rng, height, width, side)
    elif policy == "crop":
        window = area_crop(rng, height, width)
    elif policy in ("ssd", "ssd_legacy", "ssdlite"):
        if policy != "ssdlite" and rng.random() < 0.5:
            window = _zoom_out(rng, height, width)
        window = _iou_crop(rng, window, boxes, LEGACY_MIN_IOUS if policy == "ssd_legacy" else MIN_IOUS)
    elif policy == "multiscale":
        side = round(side * int(rng.choice(MULTISCALE_SIDES)) / MULTISCALE_SIDES[-1])
    resize = "stretch" if policy in ("letterbox", "crop") else recipe.resize
    shown = window[3] - window[1], window[2] - window[0]
    size = result_size(*shown, resize, side, recipe.max_size, recipe.size_rounding)
    return Geometry(window, *size, flip=policy != "none" and rng.random() < 0.5, antialias=recipe.antialias)


def keep_mask(policy: str, geometry: Geometry, boxes: Floats) -> NDArray[np.bool_]:
    """[M] mask of the objects that remain after the transform.

    IoU crops keep objects whose center is in the window and of which at least one pixel per axis is visible,
    `letterbox` those with both sides above 1 pixel of the result, `crop` those with an area above 25 pixels.
    """
    if policy in ("letterbox", "crop"):
        moved = geometry.boxes(boxes)
        sides = moved[:, 2:] - moved[:, :2]
        large: NDArray[np.bool_] = sides.min(axis=1) > 1 if policy == "letterbox" else sides.prod(axis=1) > 25
        return large
    x1, y1, x2, y2 = geometry.window
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    visible: NDArray[np.bool_] = (x1 < x) & (x < x2) & (y1 < y) & (y < y2)
    if policy in ("ssd", "ssd_legacy", "ssdlite"):
        visible &= np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1) >= 1
        visible &= np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1) >= 1
    return visible


def _zoom_out(rng: np.random.Generator, height: int, width: int) -> Window:
    """Canvas with one to four times the image's sides, the image at a random position in it."""
    ratio = rng.uniform(1, 4)
    canvas_h, canvas_w = int(height * ratio), int(width * ratio)
    left, top = int((canvas_w - width) * rng.random()), int((canvas_h - height) * rng.random())
    return -left, -top, canvas_w - left, canvas_h - top


def _iou_crop(rng: np.random.Generator, window: Window, boxes: Floats, min_ious: tuple[float, ...]) -> Window:
    """Crop that contains the center of some object and reaches a randomly drawn minimum IoU with it.

    All trials are drawn at once, forty times faster than in a loop.
    """
    x1, y1, x2, y2 = window
    width, height = x2 - x1, y2 - y1
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2  # [M, 2]
    while len(boxes):
        min_iou = min_ious[rng.integers(len(min_ious))]
        if min_iou >= 1:
            return window
        w = (width * rng.uniform(0.3, 1, CROP_TRIALS)).astype(int)
        h = (height * rng.uniform(0.3, 1, CROP_TRIALS)).astype(int)
        left = x1 + ((width - w) * rng.random(CROP_TRIALS)).astype(int)
        top = y1 + ((height - h) * rng.random(CROP_TRIALS)).astype(int)
        ratio = w / np.maximum(h, 1)
        crops = np.stack([left, top, left + w, top + h], axis=1).astype(np.float32)  # [K, 4]
        valid = (w > 0) & (h > 0) & (ratio >= 0.5) & (ratio <= 2)
        inside = (crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])  # [K, M, 2]
        contained = inside[..., 0] & inside[..., 1]
        overlap = np.where(contained, iou(crops, boxes), 0)
        accepted = np.flatnonzero(valid & contained.any(axis=1) & (overlap.max(axis=1) >= min_iou))
        if len(accepted):
            a, b, c, d = (int(v) for v in crops[accepted[0]])
            return a, b, c, d
    return window


def _letterbox(rng: np.random.Generator, height: int, width: int, side: int) -> Window:
    """Square canvas around an image that is scaled to 1/4 to 2 times `side` at a jittered aspect ratio.

    The ratio is around 1, that of the canvas, and does not depend on the image's: a wide image is squeezed. The
    window is rounded to whole pixels of the image, and the boxes follow the rounded window.
    """
    ratio = rng.uniform(0.7, 1.3) / rng.uniform(0.7, 1.3)  # width / height
    longer = rng.uniform(0.25, 2) * side
    scaled_h, scaled_w = (longer, longer * ratio) if ratio < 1 else (longer / ratio, longer)
    x1, x2 = _canvas_span(rng, width, scaled_w, side)
    y1, y2 = _canvas_span(rng, height, scaled_h, side)
    return x1, y1, x2, y2


def _canvas_span(rng: np.random.Generator, length: int, scaled: float, side: int) -> tuple[int, int]:
    """Start and end of a canvas of `side` along an image axis of `length` that is scaled to `scaled`."""
    span = max(1, round(side * length / max(scaled, 1.0)))
    room = length - span  # negative if the canvas is larger than the image
    start = round(room * rng.random())
    return start, start + span


def area_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.85, 1.0),
    fallback_ratios: tuple[float, float] = (1.0, 1.0),
) -> Window:
    """Random crop by area and aspect ratio (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    Args:
        rng: Source of randomness.
        height: Height of the image.
        width: Width of the image.
        scale: Smallest and largest fraction of the image's area.
        fallback_ratios: Smallest and largest width / height of the center crop that is returned if ten draws
            of 3/4 to 4/3 do not fit.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(round(height * fallback_ratios[1]), 1))
    h = min(height, max(round(width / fallback_ratios[0]), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
