"""Augmented training sample: one image, or several, by the steps of `detection.params.augmentation`.

Boxes first: mosaic and geometry are drawn before a pixel is touched, and every image is cropped and resized once, to
its place in the result. Pasted objects and mixed images follow in the result, then colors.

Letters: N images of the split, M objects of one image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detection.data.loading.augment import draw_geometry, happens, keep_mask
from detection.data.loading.color_jitter import jitter_colors
from detection.data.loading.geometry import Canvas, Floats, Geometry, Part, Window, filled_canvas
from detection.params.augmentation import CopyPaste, Mixup, Mosaic, Step, has
from detection.params.recipe import Recipe

CENTERS = (0.25, 0.75)
"""Smallest and largest position of a mosaic's center as a fraction of the canvas."""
PASTE_TRIALS = 10


class Labeled(NamedTuple):
    """An image with the objects that training learns."""

    image: Tensor
    """Tensor[3, H, W], uint8."""
    boxes: Floats
    """[M, 4]."""
    labels: NDArray[np.int64]
    """[M]."""


class Source(NamedTuple):
    """Images of a split."""

    load: Callable[[int], Labeled]
    """Image of a row."""
    num_images: int
    """N."""
    fill: tuple[int, int, int]
    """RGB of the padding."""


def compose(recipe: Recipe, source: Source, row: int, rng: np.random.Generator, progress: float = 0.0) -> Labeled:
    """Make the training sample of a row.

    Args:
        recipe: Size and steps.
        source: Images of the split.
        row: The image; other rows are drawn for steps that use several.
        rng: Source of randomness.
        progress: Fraction of the training that is over, for `until`.
    """
    steps = [step for step in recipe.steps if progress < getattr(step.settings, "until", math.inf)]
    first = source.load(row)
    pixels: Tensor | Canvas = first.image
    (height, width), boxes, labels, visible = first.image.shape[1:], first.boxes, first.labels, None
    for step in steps:
        if step.mosaic and happens(rng, step.mosaic.p):
            others = [source.load(int(other)) for other in rng.integers(source.num_images, size=3)]
            pixels, boxes, labels, visible = _mosaic(rng, step.mosaic, [first, *others])
    geometry = draw_geometry(recipe, rng, height, width, boxes, steps)
    keep = keep_mask(steps, geometry, boxes, visible)
    boxes, labels = geometry.boxes(boxes[keep]), labels[keep]
    if not has(steps, "copy_paste", "mixup", "hsv_jitter"):
        image = geometry.image(pixels, source.fill, lambda part: jitter_colors(steps, rng, part))
        return Labeled(image, boxes, labels)
    sample = Labeled(geometry.image(pixels, source.fill), boxes, labels)
    for step in steps:
        match step.settings:
            case CopyPaste(p=p) as settings if happens(rng, p):
                other = source.load(int(rng.integers(source.num_images)))
                scale = geometry.width / (geometry.window[2] - geometry.window[0])
                sample = _paste(rng, settings, sample, other, scale)
            case Mixup(p=p, alpha=alpha) if happens(rng, p):
                other = source.load(int(rng.integers(source.num_images)))
                sample = _mix(recipe, source.fill, rng, alpha, sample, other, steps)
    return sample._replace(image=jitter_colors(steps, rng, sample.image))


def _mosaic(
    rng: np.random.Generator, settings: Mosaic, images: Sequence[Labeled]
) -> tuple[Canvas, Floats, NDArray[np.int64], NDArray[np.float32]]:
    """Canvas of four images that meet at a point; boxes and labels on it, and the visible fraction of each object."""
    height, width = images[0].image.shape[1:]
    x, y = (round(side * rng.uniform(*CENTERS)) for side in (width, height))
    low, high = (math.log(limit) for limit in settings.scale)
    ratio = math.exp(rng.uniform(low, high))
    parts, boxes, labels, visible = [], [], [], []
    for i, one in enumerate(images):
        image_h, image_w = one.image.shape[1:]
        scale = ratio * min(width / image_w, height / image_h)
        left, top = (x if i % 2 else x - scale * image_w), (y if i > 1 else y - scale * image_h)
        shown: Window = (x if i % 2 else 0, y if i > 1 else 0, width if i % 2 else x, height if i > 1 else y)
        parts.append(Part(one.image, scale, left, top, shown))
        moved = one.boxes * np.float32(scale) + np.array([left, top, left, top], np.float32)
        clipped = np.clip(moved, [*shown[:2]] * 2, [*shown[2:]] * 2).astype(np.float32)
        whole, seen = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (moved, clipped))
        fraction = (seen / np.maximum(whole, 1e-6)).astype(np.float32)
        boxes.append(clipped[fraction > 0])
        labels.append(one.labels[fraction > 0])
        visible.append(fraction[fraction > 0])
    canvas = Canvas(height, width, tuple(parts))
    return canvas, np.concatenate(boxes), np.concatenate(labels), np.concatenate(visible)


def _paste(rng: np.random.Generator, settings: CopyPaste, sample: Labeled, other: Labeled, scale: float) -> Labeled:
    """Paste the smallest objects of another image at random positions where they meet no box of the sample."""
    image, boxes, labels = sample.image.clone(), sample.boxes, [*sample.labels.tolist()]
    height, width = image.shape[1:]
    areas = np.prod(other.boxes[:, 2:] - other.boxes[:, :2], axis=1)
    for box in np.argsort(areas, kind="stable")[: settings.max_objects].tolist():
        cut = np.round(other.boxes[box]).astype(int)
        cut[2:] = np.maximum(cut[2:], cut[:2] + 1)
        w, h = np.maximum(np.round((cut[2:] - cut[:2]) * scale), 1).astype(int).tolist()
        spots = rng.random((PASTE_TRIALS, 2))
        if w > width or h > height:
            continue
        corners = np.floor(spots * [width - w + 1, height - h + 1])  # [K, 2]
        low = np.maximum(corners[:, None], boxes[None, :, :2])
        high = np.minimum(corners[:, None] + [w, h], boxes[None, :, 2:])
        free = np.flatnonzero(~(low < high).all(axis=2).any(axis=1))
        if len(free):
            x, y = corners[free[0]].astype(int).tolist()
            window: Window = (int(cut[0]), int(cut[1]), int(cut[2]), int(cut[3]))
            image[:, y : y + h, x : x + w] = Geometry(window, h, w).image(other.image, (0, 0, 0))
            boxes = np.concatenate([boxes, np.array([[x, y, x + w, y + h]], np.float32)])
            labels.append(int(other.labels[box]))
    return Labeled(image, boxes, np.array(labels, dtype=np.int64))


def _mix(
    recipe: Recipe,
    fill: tuple[int, int, int],
    rng: np.random.Generator,
    alpha: float,
    sample: Labeled,
    other: Labeled,
    steps: Sequence[Step],
) -> Labeled:
    """Weighted mean with another image, which is transformed by its own draw and fitted into the sample's size."""
    height, width = sample.image.shape[1:]
    own = [step for step in steps if not step.mosaic]
    drawn = draw_geometry(recipe, rng, other.image.shape[1], other.image.shape[2], other.boxes, own)
    ratio = min(1.0, height / drawn.size[0], width / drawn.size[1])
    geometry = replace(drawn, height=max(1, int(drawn.height * ratio)), width=max(1, int(drawn.width * ratio)))
    keep = keep_mask(own, geometry, other.boxes)
    canvas = filled_canvas(fill, torch.uint8, height, width)
    canvas[:, : geometry.size[0], : geometry.size[1]] = geometry.image(other.image, fill)
    weight = float(rng.beta(alpha, alpha))
    mixed = (sample.image * weight + canvas * (1 - weight)).add_(0.5).to(torch.uint8)
    boxes = np.concatenate([sample.boxes, geometry.boxes(other.boxes[keep])])
    return Labeled(mixed, boxes, np.concatenate([sample.labels, other.labels[keep]]))
