"""Rendering of the shapes dataset with PIL: silhouettes, colors, backgrounds and clutter.

Pixels depend only on integer arithmetic of PIL and exact floating-point operations of numpy, so that a seed
gives the same bytes wherever the same version of PIL is installed; sines are rounded before use.

Silhouettes and clutter are drawn at 4 times the size and averaged down, which smooths their edges.
"""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw

CLASSES = ("circle", "square", "star", "triangle")
HUE_CENTERS = {"circle": 0, "square": 90, "star": 180, "triangle": 270}
HUE_REACH = 70
"""Degrees to either side of the center. Ranges 140 degrees wide and 90 apart overlap: about a third of all hues
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
