"""What every detector can do, and the containers that go in and come out.

Letters: B pictures in a batch, N detections of one picture.
Boxes are float32 `x1, y1, x2, y2`, absolute pixels, 0-based, half-open. Labels count classes from 0: no label
means background.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detection.data.batch import Sizes, Targets

__all__ = ["Detections", "Detector", "Sizes", "Targets"]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found on one picture, best first."""

    boxes: Tensor
    """Tensor[N, 4], float32, in pixels of the original picture."""
    scores: Tensor
    """Tensor[N], float32 in 0..1, falling."""
    labels: Tensor
    """Tensor[N], int64, classes from 0."""


class Detector(nn.Module, ABC):
    """A detector of some architecture.

    `forward` is `losses` in training mode and `detect` otherwise, so that wrappers such as DDP, which hook
    `forward`, work unchanged.
    """

    @abstractmethod
    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Training losses.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
            targets: The ground truth; pictures without objects are fine.

        Returns:
            Named scalars whose sum is to be minimised.
        """

    @abstractmethod
    def detect(self, images: Tensor, sizes: Sizes) -> list[Detections]:
        """Find objects.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
            sizes: What part of the batch each picture fills, and its original size.

        Returns:
            One `Detections` a picture, boxes in pixels of the original pictures and inside them.
        """

    @abstractmethod
    def core(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs, without any branching on data: what is exported and compiled.

        Args:
            images: Tensor[B, 3, H, W], uint8 in 0..255 or float in 0..1, RGB.
        """

    def forward(self, images: Tensor, extra: Any) -> Any:
        """`losses(images, targets)` in training mode, else `detect(images, sizes)`."""
        return self.losses(images, extra) if self.training else self.detect(images, extra)
