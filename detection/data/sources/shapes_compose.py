"""Composition of a shapes image: one to six objects, some of them overlapping, truncated, occluded or faint.

Objects are drawn in order, each on top of the earlier ones. An object's box is the tight box of its
silhouette within the image, including occluded parts.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from detection.data.sources import shapes_render as render

SIDE_FRACTIONS = (0.12, 0.60)
"""Range of the longer side of a box, as a fraction of the image side."""
MIN_VISIBLE = 0.2
"""Minimum visible fraction of an object."""
DIFFICULT_VISIBLE = 0.4
"""Visible fraction below which an object is `difficult`."""
PLACEMENTS = {"free": 0.58, "overlap": 0.16, "cut": 0.14, "hide": 0.07, "faint": 0.05}
"""Probability of trying each placement. They fail at different rates; the dataset card has the results."""
MAX_TRIALS = 12

Box = tuple[int, int, int, int]
Point = tuple[int, int]


@dataclass
class ShapeObject:
    """One object of an image with side S."""

    shape: str
    """Class name."""
    box: Box
    """`x1, y1, x2, y2`, 0-based, half-open."""
    mask: NDArray[np.bool_]
    """[S, S], silhouette."""
    visible: NDArray[np.bool_]
    """[S, S], part of the silhouette that later objects leave visible."""
    truncated: bool
    """Truncated by the image border."""
    faint: bool
    """Drawn at low contrast."""

    def visible_fraction(self) -> float:
        """Visible fraction of the silhouette within the image."""
        return float(self.visible.sum() / self.mask.sum())

    @property
    def difficult(self) -> bool:
        """VOC's flag: hard to recognize for a person, ignored by the metrics."""
        return self.faint or self.visible_fraction() < DIFFICULT_VISIBLE

    @property
    def occluded(self) -> bool:
        """VOC's flag."""
        return self.visible_fraction() < 0.95


def compose(size: int, rng: Generator) -> tuple[Image.Image, list[ShapeObject]]:
    """Draw one RGB image of side `size`; return it with its one to six objects."""
    image = render.background(size, rng)
    for _ in range(int(rng.integers(1, 6))):
        render.clutter(image, rng)
    objects: list[ShapeObject] = []
    for _ in range(int(rng.integers(1, 7))):
        _add_object(image, objects, rng)
    while not objects:
        _add_object(image, objects, rng)
    if rng.random() < 0.3:
        render.line_across(image, rng)
    return image, objects


def _add_object(image: Image.Image, objects: list[ShapeObject], rng: Generator) -> None:
    """Draw one more object, or none if no trial fits."""
    placement = str(rng.choice(list(PLACEMENTS), p=list(PLACEMENTS.values())))
    if not objects and placement in ("overlap", "hide"):
        placement = "free"
    shape = str(rng.choice(render.CLASSES))
    for _ in range(MAX_TRIALS):
        target = objects[int(rng.integers(len(objects)))] if placement in ("overlap", "hide") else None
        silhouette = render.silhouette(shape, _side(image.width, target, rng), rng)
        corner = _corner(placement, silhouette.size, image.width, target, rng)
        new = _object_at(shape, silhouette, corner, image.width, faint=placement == "faint")
        if new is not None and _fits(placement, new, objects, target):
            _draw_object(image, new, silhouette, corner, rng)
            for other in objects:
                other.visible &= ~new.mask
            objects.append(new)
            return


def _side(size: int, target: ShapeObject | None, rng: Generator) -> int:
    """Longer side, log-uniform, so that small objects are as frequent as in photographs."""
    low, high = (math.log(fraction * size) for fraction in SIDE_FRACTIONS)
    if target is not None:  # similar to the side of the object that it covers
        own = math.log(max(target.box[2] - target.box[0], target.box[3] - target.box[1]))
        low, high = max(low, own - 0.4), min(high, own + 0.3)
    return round(math.exp(float(rng.uniform(low, high))))


def _corner(placement: str, extent: Point, size: int, target: ShapeObject | None, rng: Generator) -> Point:
    """Upper left corner `x, y` of the silhouette; may lie outside the image."""
    if target is not None:
        limits = (0.0, 0.6) if placement == "hide" else (0.5, 1.1)
        angle, distance = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(*limits))
        x1, y1, x2, y2 = target.box
        x = (x1 + x2 + math.cos(angle) * distance * (x2 - x1)) / 2
        y = (y1 + y2 + math.sin(angle) * distance * (y2 - y1)) / 2
        return round(x - extent[0] / 2), round(y - extent[1] / 2)
    corner = [int(rng.integers(1, size - side)) for side in extent]  # one pixel away from the border
    if placement == "cut":
        axis = int(rng.integers(2))
        outside = round(extent[axis] * float(rng.uniform(0.1, 0.5)))
        corner[axis] = -outside if rng.random() < 0.5 else size - extent[axis] + outside
    return corner[0], corner[1]


def _object_at(shape: str, silhouette: Image.Image, corner: Point, size: int, *, faint: bool) -> ShapeObject | None:
    """Object with its upper left corner at `corner`, or None if too little of it is within the image."""
    canvas = Image.new("L", (size, size))
    canvas.paste(silhouette, corner)
    mask = np.asarray(canvas) >= 128  # pixels covered by half or more
    fraction = float(mask.sum() / int((np.asarray(silhouette) >= 128).sum()))
    box = canvas.point([0] * 128 + [255] * 128).getbbox()
    if box is None or fraction < 0.4:
        return None
    longer = max(box[2] - box[0], box[3] - box[1])
    if not SIDE_FRACTIONS[0] * size <= longer <= SIDE_FRACTIONS[1] * size:
        return None
    return ShapeObject(shape, box, mask, mask.copy(), truncated=fraction < 1, faint=faint)


def _fits(placement: str, new: ShapeObject, objects: list[ShapeObject], target: ShapeObject | None) -> bool:
    """Return whether an object covers its target by the intended fraction and no other object at all."""
    if (placement == "cut") != new.truncated:
        return False
    for other in objects:
        if other is not target:
            if (new.mask & other.visible).any():
                return False
            continue
        remaining = float((other.visible & ~new.mask).sum() / other.mask.sum())
        low, high = (MIN_VISIBLE, DIFFICULT_VISIBLE) if placement == "hide" else (0.55, 0.93)
        if not low <= remaining < high:
            return False
    return True


def _draw_object(image: Image.Image, new: ShapeObject, silhouette: Image.Image, corner: Point, rng: Generator) -> None:
    """Paint an object in a color that contrasts with the background, or hardly does for a faint object."""
    background = np.asarray(image)[new.mask].mean(axis=0)
    color, contrast = render.object_color(new.shape, rng), 0.0
    for _ in range(10):
        contrast = math.dist(color, background.tolist())
        if contrast >= 80:
            break
        color = render.object_color(new.shape, rng)
    if new.faint:
        opacity = min(1.0, 26 / max(contrast, 1.0))
        silhouette = silhouette.point([round(value * opacity) for value in range(256)])
    image.paste(render.shaded_fill(silhouette, color, rng), corner, silhouette)
