"""Rendering of the shapes dataset with PIL: silhouettes, colors, backgrounds and clutter.

Pixels depend only on integer arithmetic of PIL and exact floating-point operations of numpy, so that a seed
gives the same bytes wherever the same version of PIL is installed; sines are rounded before use.

Silhouettes and clutter are drawn at 4 times the size and averaged down, which smooths their edges.

Composition of a shapes image: one to six objects, some of them overlapping, truncated, occluded or faint.

Objects are drawn in order, each on top of the earlier ones. An object's box is the tight box of its
silhouette within the image, including occluded parts.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from detection.data.sources import shapes_render as render

CLASSES = ("circle", "square", "star", "triangle")
HUE_CENTERS = {"circle": 0, "square": 90, "star": 180, "triangle": 270}
HUE_REACH = 70
"""Degrees to either side of the center. Ranges 140 degrees wide and 90 apart overlap: about a third of all
hues
identifies one class, the others fit two."""
OVERSAMPLE = 4

Color = tuple[int, int, int]
Points = list[tuple[float, float]]


def silhouette(shape: str, side: int, rng: Generator) -> Image.Image:
    """Draw a filled shape in a random pose.

    Args:
        shape: One of `CLASSES`.
        side: Longer side of the bounding box in pixels.
        rng: Random generator.

    Returns:
        Mask in mode L, cropped to the shape: 255 inside, 0 outside, smooth edges.
    """
    points = _corners(shape, rng)
    low = [min(point[axis] for point in points) for axis in (0, 1)]
    extent = [max(point[axis] for point in points) - low[axis] for axis in (0, 1)]
    scale = (side * OVERSAMPLE - 1) / max(extent)
    size = [math.ceil(extent[axis] * scale / OVERSAMPLE + 0.25) * OVERSAMPLE for axis in (0, 1)]
    mask = Image.new("L", (size[0], size[1]))
    scaled = [(round((x - low[0]) * scale, 2), round((y - low[1]) * scale, 2)) for x, y in points]
    ImageDraw.Draw(mask).polygon(scaled, fill=255)
    return mask.reduce(OVERSAMPLE)


def object_color(shape: str, rng: Generator) -> Color:
    """Draw a color from the class's range of hues."""
    hue = HUE_CENTERS[shape] + float(rng.uniform(-HUE_REACH, HUE_REACH))
    return _rgb(hue, float(rng.uniform(0.45, 1.0)), float(rng.uniform(0.45, 1.0)))


def any_color(rng: Generator) -> Color:
    """Draw a color of any hue for background and clutter, on average less saturated than an object's."""
    return _rgb(float(rng.uniform(0, 360)), float(rng.uniform(0.0, 0.8)), float(rng.uniform(0.15, 1.0)))


def background(size: int, rng: Generator) -> Image.Image:
    """Draw a texture: two colors blended by smooth noise, a gradient or stripes, with grain on top."""
    texture = rng.choice(["noise", "noise", "gradient", "stripes"])
    if texture == "noise":
        blend = _noise(size, int(rng.integers(3, 11)), rng)
    elif texture == "gradient":
        blend = _noise(size, 2, rng)
    else:
        blend = _stripes(size, rng)
    ends = [Image.new("RGB", (size, size), any_color(rng)) for _ in range(2)]
    image = Image.composite(ends[0], ends[1], blend)
    grain = _noise(size, max(8, size // 3), rng).point([128 + (value - 128) // 6 for value in range(256)])
    return ImageChops.add(image, grain.convert("RGB"), offset=-128)


def clutter(image: Image.Image, rng: Generator) -> None:
    """Draw one distractor: a line, an arc, dots, an outline, a crescent, or a scribble."""
    distractors = (_line, _arc, _dots, _outline, _crescent, _scribble)
    _draw(image, distractors[int(rng.integers(len(distractors)))], rng)


def line_across(image: Image.Image, rng: Generator) -> None:
    """Draw a thin line over everything, including objects."""
    _draw(image, _line, rng)


def _draw(image: Image.Image, stroke: Callable[[ImageDraw.ImageDraw, int, Generator], None], rng: Generator) -> None:
    canvas = Image.new("L", (image.width * OVERSAMPLE, image.height * OVERSAMPLE))
    stroke(ImageDraw.Draw(canvas), canvas.width, rng)
    image.paste(any_color(rng), mask=canvas.reduce(OVERSAMPLE))


def shaded_fill(mask: Image.Image, color: Color, rng: Generator) -> Image.Image:
    """Draw an RGB image to paste through `mask`: the color, shaded, with or without an outline."""
    light = _noise(max(mask.size), 2, rng).crop((0, 0, *mask.size))
    shade = light.point([208 + value * 47 // 255 for value in range(256)])
    fill = ImageChops.multiply(Image.new("RGB", mask.size, color), shade.convert("RGB"))
    if rng.random() < 0.4:
        factor = float(rng.choice([0.45, 1.6]))
        edge = tuple(min(255, round(channel * factor)) for channel in color)
        inner = mask.resize((max(1, mask.width - 3), max(1, mask.height - 3)), Image.Resampling.BILINEAR)
        ring = mask.copy()
        ring.paste(0, (1, 1), inner)
        fill.paste(edge, mask=ring)
    return fill


def _corners(shape: str, rng: Generator) -> Points:
    """Corners of a shape around the origin, rotated by a random angle."""
    turn = float(rng.uniform(0, 360))
    if shape == "circle":
        return _polar([turn + 7.5 * i for i in range(48)], [1.0] * 48)
    if shape == "square":
        return _polar([turn + 90 * i for i in range(4)], [1.0] * 4)
    if shape == "triangle":
        jitter = rng.uniform(-12, 12, 3).tolist()
        return _polar([turn + 120 * i + jitter[i] for i in range(3)], [1.0] * 3)
    inner = float(rng.uniform(0.38, 0.5))
    return _polar([turn + 36 * i for i in range(10)], [1.0, inner] * 5)


def _polar(degrees: list[float], radii: list[float]) -> Points:
    return [
        (round(r * math.cos(math.radians(d)), 6), round(r * math.sin(math.radians(d)), 6))
        for d, r in zip(degrees, radii, strict=True)
    ]


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _noise(size: int, cells: int, rng: Generator) -> Image.Image:
    """Random gray levels on a grid of `cells` x `cells`, upsampled smoothly."""
    grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    return Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)


def _stripes(size: int, rng: Generator) -> Image.Image:
    angle, period = float(rng.uniform(0, math.pi)), float(rng.uniform(0.06, 0.3)) * size
    frequency = round(math.cos(angle) / period, 6), round(math.sin(angle) / period, 6)
    grid = np.arange(size)
    phase = (frequency[0] * grid[None, :] + frequency[1] * grid[:, None] + float(rng.random())) % 1.0
    wave = np.abs(2 * phase - 1)  # triangle wave: stripes with soft edges
    return Image.fromarray(np.clip(wave * 510 - 128, 0, 255).astype(np.uint8))


def _position(side: int, rng: Generator) -> tuple[float, float]:
    x, y = rng.uniform(0, side, 2).tolist()
    return x, y


def _width(side: int, rng: Generator) -> int:
    return max(2, int(side * rng.uniform(0.005, 0.016)))


def _line(draw: ImageDraw.ImageDraw, side: int, rng: Generator) -> None:
    draw.line([_position(side, rng), _position(side, rng)], fill=255, width=_width(side, rng))


def _arc(draw: ImageDraw.ImageDraw, side: int, rng: Generator) -> None:
    (x, y), r, start = _position(side, rng), side * float(rng.uniform(0.08, 0.3)), int(rng.integers(360))
    stop = start + int(rng.integers(40, 220))
    draw.arc((x - r, y - r, x + r, y + r), start, stop, fill=255, width=_width(side, rng))


def _dots(draw: ImageDraw.ImageDraw, side: int, rng: Generator) -> None:
    """A few dots, each at most a quarter of the smallest object."""
    for _ in range(int(rng.integers(3, 10))):
        (x, y), r = _position(side, rng), side * float(rng.uniform(0.005, 0.015))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)


def _outline(draw: ImageDraw.ImageDraw, side: int, rng: Generator) -> None:
    """Outline of a shape; not an object, because it is not filled."""
    (x, y), r = _position(side, rng), side * float(rng.uniform(0.06, 0.2))
    points = [(x + r * u, y + r * v) for u, v in _corners(str(rng.choice(CLASSES)), rng)]
    draw.polygon(points, outline=255, width=_width(side, rng))


def _crescent(draw: ImageDraw.ImageDraw, side: int, rng: Generator) -> None:
    (x, y), r = _position(side, rng), side * float(rng.uniform(0.05, 0.14))
    shift, angle = float(rng.uniform(0.35, 0.6)), float(rng.uniform(0, 2 * math.pi))
    dx, dy = round(r * shift * math.cos(angle), 2), round(r * shift * math.sin(angle), 2)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    draw.ellipse((x - r + dx, y - r + dy, x + r + dx, y + r + dy), fill=0)


def _scribble(draw: ImageDraw.ImageDraw, side: int, rng: Generator) -> None:
    """Connected strokes along a line, like handwriting."""
    (x, y), height = _position(side, rng), side * float(rng.uniform(0.03, 0.07))
    points = [(x, y)]
    for _ in range(int(rng.integers(6, 16))):
        x += height * float(rng.uniform(0.1, 0.5))
        points.append((x, y + height * float(rng.uniform(-1, 1))))
    draw.line(points, fill=255, width=max(2, int(height * 0.15)))


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
