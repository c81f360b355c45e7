"""Geometric transform of an image: crop a window, resize it, rotate or shear it, flip it.

The window is drawn from the boxes alone. Pixels are touched once, by one crop and one uint8 resize to the
final size; colors change before or after the resize, whichever has fewer pixels. This is four times faster
than augmenting the full-size image step by step. A rotation or shear follows the resize, by Pillow's transform
of 8-bit pixels; the window is then widened by what it brings into view.

Letters: M boxes of one image; boxes are float32 `x1, y1, x2, y2`, absolute pixels, half-open.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Floats = NDArray[np.float32]
Window = tuple[int, int, int, int]
"""`x1, y1, x2, y2` in whole pixels of the image; may extend beyond it."""
SAMPLES = ((-0.125, -0.375), (0.125, 0.375), (0.375, -0.125), (-0.375, 0.125))
"""Offsets in pixels of a warp's four nearest-neighbor samples. Their mean takes half the time of Pillow's bilinear
transform, which is not in fixed point, and its PSNR against that is 40 dB; that of one sample is 30 dB."""


@dataclass(frozen=True, slots=True)
class Part:
    """An image on a canvas, of which a rectangle is shown."""

    image: Tensor
    """Tensor[3, H, W], uint8."""
    scale: float
    """Pixels of the canvas per pixel of the image."""
    left: float
    """Position of the image's left side on the canvas."""
    top: float
    """Position of its upper side."""
    shown: Window
    """Rectangle of the canvas that it fills as far as it reaches."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Several images that are cropped and resized as if they were one, each of them once."""

    height: int
    width: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Crop, resize, warp and flip of one image and its boxes."""

    window: Window
    """Part of the image that is shown; padded where it extends beyond the image."""
    height: int
    """Height of the result in pixels, before a quarter turn."""
    width: int
    """Width of the result in pixels, before a quarter turn."""
    flip: bool = False
    """Flip horizontally."""
    antialias: bool = True
    """Smooth when the image shrinks."""
    warp: tuple[float, float, float, float] | None = None
    """Rows of a 2 x 2 matrix that maps points around the window's center, in pixels of the image; null: none."""
    vertical: bool = False
    """Flip vertically."""
    quarter_turn: bool = False
    """Rotate by 90 degrees to the left, last."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.width, self.height) if self.quarter_turn else (self.height, self.width)

    def boxes(self, boxes: Floats) -> Floats:
        """Transform boxes [M, 4] of the image and clip them to the result."""
        height, width = self.size
        clipped: Floats = np.clip(self.moved(boxes), 0, np.array([width, height] * 2, np.float32)).astype(np.float32)
        return clipped

    def moved(self, boxes: Floats) -> Floats:
        """Transform boxes [M, 4]; a warped box is the box of its corners."""
        x1, y1, x2, y2 = self.window
        scale = np.array([self.width / (x2 - x1), self.height / (y2 - y1)] * 2, np.float32)
        moved = (boxes - np.array([x1, y1, x1, y1], np.float32)) * scale
        if self.warp is not None:
            matrix, center = self._matrix(), np.array([self.width, self.height]) / 2
            middle = ((moved[:, :2] + moved[:, 2:]) / 2 - center) @ matrix.T + center
            half = (moved[:, 2:] - moved[:, :2]) / 2 @ np.abs(matrix).T
            moved = np.concatenate([middle - half, middle + half], axis=1)
        if self.flip:
            moved = moved[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [self.width, 0, self.width, 0]
        if self.vertical:
            moved = moved[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, self.height, 0, self.height]
        if self.quarter_turn:  # (x, y) to (y, width - x)
            moved = moved[:, [1, 2, 3, 0]] * [1, -1, 1, -1] + [0, self.width, 0, self.width]
        return moved

    def image(
        self, image: Tensor | Canvas, fill: tuple[int, int, int], color: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Transform an image, Tensor[3, H, W] uint8, to Tensor[3, *size] of the same or color's dtype.

        Args:
            image: The whole image, or several.
            fill: RGB of the padding.
            color: Color transform, to uint8 or float32. It gets the pixels of one image without padding, before or
                after the resize, whichever has fewer pixels; those of several images and of a warp after it.
        """
        if self.warp is not None:
            pixels = self._warped(image, fill)
            pixels = color(pixels) if color else pixels
        elif isinstance(image, Canvas):
            pixels = _shown_parts(image, self.window, (self.height, self.width), self.antialias, fill)
            pixels = color(pixels) if color else pixels
        else:
            pixels = _shown(image, self.window, (self.height, self.width), self.antialias, fill, color)
        pixels = pixels.flip(2) if self.flip else pixels
        pixels = pixels.flip(1) if self.vertical else pixels
        return pixels.rot90(1, (1, 2)) if self.quarter_turn else pixels

    def _matrix(self) -> NDArray[np.float64]:
        """`warp` in pixels of the result, whose sides may be scaled differently."""
        x1, y1, x2, y2 = self.window
        scale = np.array([self.width / (x2 - x1), self.height / (y2 - y1)])
        matrix: NDArray[np.float64] = np.array(self.warp).reshape(2, 2) * scale[:, None] / scale
        return matrix

    def _warped(self, image: Tensor | Canvas, fill: tuple[int, int, int]) -> Tensor:
        """Show the window and what the warp brings into it, and warp that; an image that is not smoothed, at once."""
        inverse = np.linalg.inv(self._matrix())
        center = np.array([self.width, self.height]) / 2
        reach = np.abs(inverse) @ center  # half sides of what is shown, in pixels of the result
        low, high = np.array(self.window[:2]), np.array(self.window[2:])
        scale = np.array([self.width, self.height]) / (high - low)
        if isinstance(image, Tensor) and (not self.antialias or (scale >= 1).all()):
            offset = (center - inverse @ center) / scale + low
            return self._transformed(image, inverse / scale[:, None], offset, fill)
        limits = (image.width, image.height) if isinstance(image, Canvas) else image.shape[:0:-1]
        wide_low = np.maximum(np.floor(low + (center - reach) / scale).astype(int), 0)
        wide_high = np.minimum(np.ceil(low + (center + reach) / scale).astype(int), limits)
        if (wide_low >= wide_high).any():
            return filled_canvas(fill, torch.uint8, self.height, self.width)
        width, height = np.maximum(np.round((wide_high - wide_low) * scale), 1).astype(int).tolist()
        window = (*wide_low.tolist(), *wide_high.tolist())
        if isinstance(image, Canvas):
            pixels = _shown_parts(image, window, (height, width), self.antialias, fill)
        else:
            pixels = _shown(image, window, (height, width), self.antialias, fill)
        wide_scale = np.array([width, height]) / (wide_high - wide_low)
        offset = ((center - inverse @ center) / scale + low - wide_low) * wide_scale
        return self._transformed(pixels, inverse * (wide_scale / scale)[:, None], offset, fill)

    def _transformed(
        self, pixels: Tensor, matrix: NDArray[np.float64], offset: NDArray[np.float64], fill: tuple[int, int, int]
    ) -> Tensor:
        """Pixels at `matrix @ (x, y) + offset` for every point of the result, as the mean of `SAMPLES`."""
        (a, b), (d, e) = matrix.tolist()
        source = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        a1, a2, b1, b2 = (
            source.transform(
                (self.width, self.height),
                Image.Transform.AFFINE,
                (a, b, float(offset[0]) + x, d, e, float(offset[1]) + y),
                Image.Resampling.NEAREST,
                fillcolor=fill,
            )
            for x, y in SAMPLES
        )
        warped = Image.blend(Image.blend(a1, a2, 0.5), Image.blend(b1, b2, 0.5), 0.5)
        return torch.from_numpy(np.array(warped)).permute(2, 0, 1)


def _shown(
    image: Tensor,
    window: Window,
    size: tuple[int, int],
    antialias: bool,
    fill: tuple[int, int, int],
    color: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Crop a window, resize it to `size` (height, width), and pad it where it extends beyond the image."""
    (x1, y1, x2, y2), (height, width) = window, size
    top, left = max(y1, 0), max(x1, 0)
    bottom, right = min(y2, image.shape[1]), min(x2, image.shape[2])
    if top >= bottom or left >= right:
        return filled_canvas(fill, image.dtype, height, width)
    scale_y, scale_x = height / (y2 - y1), width / (x2 - x1)
    rows = _span((top - y1) * scale_y, (bottom - y1) * scale_y, height)
    columns = _span((left - x1) * scale_x, (right - x1) * scale_x, width)
    part = image[:, top:bottom, left:right]
    resized = rows.stop - rows.start, columns.stop - columns.start
    if color is None:
        part = _resize(part, *resized, antialias)
    elif part[0].numel() < resized[0] * resized[1]:
        part = _resize(color(part), *resized, antialias)
    else:
        part = color(_resize(part, *resized, antialias))
    if part.shape[1:] == size:
        return part
    canvas = filled_canvas(fill, part.dtype, height, width)
    canvas[:, rows, columns] = part
    return canvas


def _shown_parts(
    canvas: Canvas, window: Window, size: tuple[int, int], antialias: bool, fill: tuple[int, int, int]
) -> Tensor:
    """Crop and resize each image's part of a window into its place, and pad the rest."""
    (x1, y1, x2, y2), (height, width) = window, size
    scale_y, scale_x = height / (y2 - y1), width / (x2 - x1)
    result = filled_canvas(fill, torch.uint8, height, width)
    for part in canvas.parts:
        image_h, image_w = part.image.shape[1:]
        left = max(part.shown[0], part.left, x1)
        top = max(part.shown[1], part.top, y1)
        right = min(part.shown[2], part.left + part.scale * image_w, x2)
        bottom = min(part.shown[3], part.top + part.scale * image_h, y2)
        if right - left <= 0 or bottom - top <= 0:
            continue
        rows = _span((top - y1) * scale_y, (bottom - y1) * scale_y, height)
        columns = _span((left - x1) * scale_x, (right - x1) * scale_x, width)
        inner_rows = _span((top - part.top) / part.scale, (bottom - part.top) / part.scale, image_h)
        inner_columns = _span((left - part.left) / part.scale, (right - part.left) / part.scale, image_w)
        shown = part.image[:, inner_rows, inner_columns]
        resized = _resize(shown, rows.stop - rows.start, columns.stop - columns.start, antialias)
        result[:, rows, columns] = resized
    return result


def filled_canvas(fill: tuple[int, int, int], dtype: torch.dtype, height: int, width: int) -> Tensor:
    """Tensor[3, height, width] of one color, given in 0..255; in 0..1 for a floating-point `dtype`."""
    return fill_value(fill, dtype).repeat(1, height, width)


def fill_value(fill: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Tensor[3, 1, 1] of a color given in 0..255; in 0..1 for a floating-point `dtype`."""
    color: Tensor = F.to_dtype(torch.tensor(fill, dtype=torch.uint8), dtype, scale=True)
    return color.view(3, 1, 1)


def _span(start: float, stop: float, limit: int) -> slice:
    """Whole pixels from `start` to `stop` of a side of `limit` pixels, at least one."""
    first = min(round(start), limit - 1)
    return slice(first, max(round(stop), first + 1))


def _resize(image: Tensor, height: int, width: int, antialias: bool) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    resized: Tensor = F.resize(image, [height, width], antialias=antialias)
    return resized


def result_size(
    height: int, width: int, resize: str, size: int, max_size: int | None, rounding: str = "floor"
) -> tuple[int, int]:
    """Height and width of an image after resizing.

    `stretch` gives a square of side `size`. `keep` keeps the aspect ratio: the shorter side gets `size`
    pixels, or fewer if the longer side would exceed `max_size`. With `floor` both sides are those of
    torchvision's `GeneralizedRCNNTransform`, in its arithmetic: 600 / 281 * 281 is 599.99… and gives 599.
    """
    if resize == "stretch":
        return size, size
    scale = size / min(height, width)
    if max_size is not None:
        scale = min(scale, max_size / max(height, width))
    to_pixels = math.floor if rounding == "floor" else round
    return max(1, to_pixels(height * scale)), max(1, to_pixels(width * scale))
