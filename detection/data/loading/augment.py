"""Geometric steps of augmentation. They are drawn from the boxes alone, before a pixel is touched.

`detection.params.augmentation` has the steps, their settings, and the named policies with their sources. Each step
draws a window of the image, or of the window of the step before; flips and the recipe's size follow. The recipe's
`resize` also holds for validation, test and prediction under every policy: they always see the whole image. With
`letterbox`, the published evaluation is `resize: keep` without `max_size`; a `max_size` of `image_size` gives the
geometry of the square without padding. With `crop`, `stretch` gives the geometry of the square.

Letters: M objects of the image, K trials of a crop.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.geometry import Floats, Geometry, Window, result_size
from detection.ops.boxes import iou
from detection.params.augmentation import Affine, Crop, CropByOverlap, Flip, Letterbox, Multiscale, Step, ZoomOut, has
from detection.params.recipe import Recipe

CROP_TRIALS = 40
RATIOS = (3 / 4, 4 / 3)
"""Smallest and largest width / height of an area crop."""
MIN_VISIBLE, MIN_SIDE_PX = 0.2, 2.0
"""Least visible fraction of an object, and least side in the result, after `mosaic` and `affine`."""


def draw_geometry(
    recipe: Recipe,
    rng: np.random.Generator,
    height: int,
    width: int,
    boxes: Floats,
    steps: Sequence[Step] | None = None,
) -> Geometry:
    """Draw the geometric transform of an image with boxes [M, 4] by the recipe's steps, or by others, and its size."""
    steps = recipe.steps if steps is None else steps
    window: Window = (0, 0, width, height)
    side, warp, flip = recipe.image_size, None, Flip(horizontal=0)
    for step in steps:
        match step.settings:
            case Letterbox() as letterbox:
                window = _letterbox(rng, window, side, letterbox)
            case Crop(scale=scale):
                x1, y1, x2, y2 = window
                window = _shifted(area_crop(rng, y2 - y1, x2 - x1, scale), x1, y1)
            case ZoomOut(p=p, max_ratio=ratio) if happens(rng, p):
                window = _zoom_out(rng, window, ratio)
            case CropByOverlap(p=p, min_overlaps=overlaps) if happens(rng, p):
                window = _iou_crop(rng, window, boxes, overlaps)
            case Affine(p=p) as affine if happens(rng, p):
                window, warp = _affine(rng, window, affine)
            case Multiscale(scale=(low, high), count=count):
                side = max(1, round(side * float(rng.choice(np.linspace(low, high, count)))))
            case Flip() as flip:
                pass
    resize = "stretch" if is_square(steps) else recipe.resize
    shown = window[3] - window[1], window[2] - window[0]
    size = result_size(*shown, resize, side, recipe.max_size, recipe.size_rounding)
    return Geometry(
        window,
        *size,
        flip=happens(rng, flip.horizontal),
        vertical=happens(rng, flip.vertical),
        quarter_turn=happens(rng, flip.rotate90),
        warp=warp,
        antialias=recipe.antialias,
    )


def is_square(steps: Sequence[Step]) -> bool:
    """Return True if the result is a square of `image_size`, independent of the recipe's `resize`."""
    return has(steps, "letterbox", "crop")


def happens(rng: np.random.Generator, p: float) -> bool:
    """Draw whether something of probability `p` happens; 0 and 1 draw no number."""
    return p >= 1 or (p > 0 and rng.random() < p)


def keep_mask(
    steps: Sequence[Step], geometry: Geometry, boxes: Floats, visible: NDArray[np.float32] | None = None
) -> NDArray[np.bool_]:
    """[M] mask of the objects that remain after the transform.

    IoU crops keep objects whose center is in the window and of which at least one pixel per axis is visible,
    `letterbox` those with both sides above 1 pixel of the result, `crop` those with an area above 25 pixels, `mosaic`
    and `affine` those of which `MIN_VISIBLE` is visible with sides above `MIN_SIDE_PX`.

    Args:
        steps: Steps of the augmentation.
        geometry: The transform.
        boxes: [M, 4] in pixels of the image.
        visible: [M] visible fraction of each object before the transform; None: all of it.
    """
    if has(steps, "mosaic", "affine"):
        moved, clipped = geometry.moved(boxes), geometry.boxes(boxes)
        sides = clipped[:, 2:] - clipped[:, :2]
        whole = np.prod(moved[:, 2:] - moved[:, :2], axis=1) / (1 if visible is None else visible)
        enough = (sides.min(axis=1, initial=np.inf) > MIN_SIDE_PX) & (sides.prod(axis=1) >= MIN_VISIBLE * whole)
        return np.asarray(enough, dtype=np.bool_)
    if is_square(steps):
        moved = geometry.boxes(boxes)
        sides = moved[:, 2:] - moved[:, :2]
        large: NDArray[np.bool_] = sides.min(axis=1) > 1 if has(steps, "letterbox") else sides.prod(axis=1) > 25
        return large
    x1, y1, x2, y2 = geometry.window
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    inside: NDArray[np.bool_] = (x1 < x) & (x < x2) & (y1 < y) & (y < y2)
    if has(steps, "crop_by_overlap"):
        inside &= np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1) >= 1
        inside &= np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1) >= 1
    return inside


def _shifted(window: Window, x: int, y: int) -> Window:
    return window[0] + x, window[1] + y, window[2] + x, window[3] + y


def _affine(
    rng: np.random.Generator, window: Window, settings: Affine
) -> tuple[Window, tuple[float, float, float, float] | None]:
    """Window of a scale and shift, and the matrix of rotation and shear, if any."""
    low, high = (math.log(limit) for limit in settings.scale)
    scale = math.exp(rng.uniform(low, high))
    x1, y1, x2, y2 = window
    shift_x, shift_y = rng.uniform(-settings.translate, settings.translate, 2)
    width, height = (x2 - x1) / scale, (y2 - y1) / scale
    left = round((x1 + x2 - width) / 2 + shift_x * (x2 - x1))
    top = round((y1 + y2 - height) / 2 + shift_y * (y2 - y1))
    shown = left, top, left + max(1, round(width)), top + max(1, round(height))
    if not (settings.rotate or settings.shear):
        return shown, None
    angle = math.radians(rng.uniform(-settings.rotate, settings.rotate))
    slant_x, slant_y = np.tan(np.radians(rng.uniform(-settings.shear, settings.shear, 2))).tolist()
    cos, sin = math.cos(angle), math.sin(angle)
    return shown, (cos - sin * slant_y, cos * slant_x - sin, sin + cos * slant_y, sin * slant_x + cos)


def _zoom_out(rng: np.random.Generator, window: Window, max_ratio: float) -> Window:
    """Canvas with one to `max_ratio` times the window's sides, the window at a random position in it."""
    ratio = rng.uniform(1, max_ratio)
    x1, y1, x2, y2 = window
    height, width = y2 - y1, x2 - x1
    canvas_h, canvas_w = int(height * ratio), int(width * ratio)
    left, top = int((canvas_w - width) * rng.random()), int((canvas_h - height) * rng.random())
    return _shifted((-left, -top, canvas_w - left, canvas_h - top), x1, y1)


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


def _letterbox(rng: np.random.Generator, window: Window, side: int, settings: Letterbox) -> Window:
    """Square canvas around an image that is scaled to 1/4 to 2 times `side` at a jittered aspect ratio.

    The ratio is around 1, that of the canvas, and does not depend on the image's: a wide image is squeezed. The
    window is rounded to whole pixels of the image, and the boxes follow the rounded window.
    """
    low, high = 1 - settings.jitter, 1 + settings.jitter
    ratio = rng.uniform(low, high) / rng.uniform(low, high)  # width / height
    longer = rng.uniform(*settings.scale) * side
    scaled_h, scaled_w = (longer, longer * ratio) if ratio < 1 else (longer / ratio, longer)
    x1, x2 = _canvas_span(rng, window[2] - window[0], scaled_w, side)
    y1, y2 = _canvas_span(rng, window[3] - window[1], scaled_h, side)
    return _shifted((x1, y1, x2, y2), *window[:2])


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
