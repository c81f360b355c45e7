"""Geometric transform of an image: crop a window, resize it, flip it horizontally.

The window is drawn from the boxes alone. Pixels are touched once, by one crop and one uint8 resize to the
final size; colors change before or after the resize, whichever has fewer pixels. This is four times faster
than augmenting the full-size image step by step.

Letters: M boxes of one image; boxes are float32 `x1, y1, x2, y2`, absolute pixels, half-open.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Floats = NDArray[np.float32]
Window = tuple[int, int, int, int]
"""`x1, y1, x2, y2` in whole pixels of the image; may extend beyond it."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Crop, resize and flip of one image and its boxes."""

    window: Window
    """Part of the image that is shown; padded where it extends beyond the image."""
    height: int
    """Height of the result in pixels."""
    width: int
    """Width of the result in pixels."""
    flip: bool = False
    """Flip horizontally."""
    antialias: bool = True
    """Smooth when the image shrinks."""

    def boxes(self, boxes: Floats) -> Floats:
        """Transform boxes [M, 4] of the image and clip them to the result."""
        x1, y1, x2, y2 = self.window
        scale = np.array([self.width / (x2 - x1), self.height / (y2 - y1)] * 2, np.float32)
        moved = (boxes - np.array([x1, y1, x1, y1], np.float32)) * scale
        if self.flip:
            moved = moved[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [self.width, 0, self.width, 0]
        limit = np.array([self.width, self.height] * 2, np.float32)
        clipped: Floats = np.clip(moved, 0, limit).astype(np.float32)
        return clipped

    def image(
        self, image: Tensor, fill: tuple[int, int, int], color: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Transform an image, Tensor[3, H, W] uint8, to Tensor[3, height, width] of the same or color's dtype.

        Args:
            image: The whole image.
            fill: RGB of the padding.
            color: Color transform, to uint8 or float32. It gets the pixels of the image without padding, before or
                after the resize, whichever has fewer pixels.
        """
        x1, y1, x2, y2 = self.window
        top, left = max(y1, 0), max(x1, 0)
        bottom, right = min(y2, image.shape[1]), min(x2, image.shape[2])
        scale_y, scale_x = self.height / (y2 - y1), self.width / (x2 - x1)
        rows = _span((top - y1) * scale_y, (bottom - y1) * scale_y, self.height)
        columns = _span((left - x1) * scale_x, (right - x1) * scale_x, self.width)
        part = image[:, top:bottom, left:right]
        size = rows.stop - rows.start, columns.stop - columns.start
        if color is None:
            part = _resize(part, *size, self.antialias)
        elif part[0].numel() < size[0] * size[1]:
            part = _resize(color(part), *size, self.antialias)
        else:
            part = color(_resize(part, *size, self.antialias))
        if part.shape[1:] != (self.height, self.width):
            canvas = filled_canvas(fill, part.dtype, self.height, self.width)
            canvas[:, rows, columns] = part
            part = canvas
        return part.flip(2) if self.flip else part


def filled_canvas(fill: tuple[int, int, int], dtype: torch.dtype, height: int, width: int) -> Tensor:
    """Tensor[3, height, width] of one color, given in 0..255; in 0..1 for a floating-point `dtype`."""
    return fill_value(fill, dtype).repeat(1, height, width)


def fill_value(fill: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Tensor[3, 1, 1] of a color given in 0..255; in 0..1 for a floating-point `dtype`."""
    color: Tensor = F.to_dtype(torch.tensor(fill, dtype=torch.uint8), dtype, scale=True)
    return color.view(3, 1, 1)


def _span(start: float, stop: float, limit: int) -> slice:
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
