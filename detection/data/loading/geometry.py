"""Where a picture goes: a window of it, onto a canvas of some size, mirrored or not.

The window is drawn while there are only boxes; pixels are touched once, by one crop and one uint8 resize to
the final size; colours change on whichever of the two has fewer of them. That order is four times faster
than augmenting the full-size picture step by step.

Letters: M boxes of one picture; boxes are float32 `x1, y1, x2, y2`, absolute pixels, half-open.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Floats = NDArray[np.float32]
Window = tuple[int, int, int, int]
"""`x1, y1, x2, y2` in pixels of the picture, whole numbers; may reach beyond it."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What happens to the pixels and boxes of one picture."""

    window: Window
    """The part that is shown; filled where it lies beyond the picture."""
    height: int
    """Of the result, in pixels."""
    width: int
    """Of the result, in pixels."""
    flip: bool = False
    """Mirror left and right."""

    def boxes(self, boxes: Floats) -> Floats:
        """Boxes [M, 4] of the picture to boxes of the result, clipped to it."""
        x1, y1, x2, y2 = self.window
        scale = np.array([self.width / (x2 - x1), self.height / (y2 - y1)] * 2, np.float32)
        moved = (boxes - np.array([x1, y1, x1, y1], np.float32)) * scale
        if self.flip:
            moved = moved[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [self.width, 0, self.width, 0]
        limit = np.array([self.width, self.height] * 2, np.float32)
        clipped: Floats = np.clip(moved, 0, limit).astype(np.float32)
        return clipped

    def picture(
        self, picture: Tensor, fill: tuple[int, int, int], change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Pixels Tensor[3, H, W] uint8 to Tensor[3, height, width] uint8.

        Args:
            picture: The whole picture.
            fill: RGB of what lies beyond it.
            change: Of the colours. It sees the picture's own pixels and no fill, before or after the resize:
                where there are fewer.
        """
        x1, y1, x2, y2 = self.window
        top, left = max(y1, 0), max(x1, 0)
        bottom, right = min(y2, picture.shape[1]), min(x2, picture.shape[2])
        down, across = self.height / (y2 - y1), self.width / (x2 - x1)
        rows = _span((top - y1) * down, (bottom - y1) * down, self.height)
        columns = _span((left - x1) * across, (right - x1) * across, self.width)
        part = picture[:, top:bottom, left:right]
        size = rows.stop - rows.start, columns.stop - columns.start
        if change is None:
            part = _resize(part, *size)
        elif part[0].numel() < size[0] * size[1]:
            part = _resize(change(part), *size)
        else:
            part = change(_resize(part, *size))
        if part.shape[1:] != (self.height, self.width):
            canvas = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, self.height, self.width)
            canvas[:, rows, columns] = part
            part = canvas
        return part.flip(2) if self.flip else part


def _span(start: float, stop: float, limit: int) -> slice:
    first = min(round(start), limit - 1)
    return slice(first, max(round(stop), first + 1))


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    if picture.shape[1:] == (height, width):
        return picture
    resized: Tensor = F.resize(picture, [height, width], antialias=True)
    return resized


def result_size(height: int, width: int, resize: str, size: int, longest: int | None) -> tuple[int, int]:
    """Height and width that a picture gets.

    Args:
        height: Of the picture.
        width: Of the picture.
        resize: `stretch` to `size` by `size`; `keep` the aspect ratio.
        size: Side, or short side, in pixels.
        longest: With `keep`, limit of the long side in pixels.
    """
    if resize == "stretch":
        return size, size
    scale = size / min(height, width)
    if longest is not None:
        scale = min(scale, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
