"""Anchors and default boxes: the boxes that a detector's outputs are relative to.

Letters: A anchors of all levels, ordered by level, row, column and anchor within the cell.
Boxes are float32 `x1, y1, x2, y2` in pixels of the batch; they may extend beyond the image.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

Size = tuple[int, int]
"""Height and width."""
MAX_CACHED_SIZES = 128
"""Batch sizes in pixels whose anchors are cached; resizing with a fixed aspect ratio to several sizes gives 91."""


def feature_sizes(features: Sequence[Tensor]) -> list[Size]:
    """Height and width of feature maps Tensor[B, C, H, W]."""
    return [(level.shape[2], level.shape[3]) for level in features]


class AnchorGenerator(ABC):
    """Boxes at every cell of some feature maps, computed once per set of sizes.

    Invariant: `len(generator(sizes, image_size)) == sum(generator.counts(sizes))`.
    """

    anchors_per_cell: tuple[int, ...]
    """Number of boxes at each cell, per level."""

    def __init__(self) -> None:
        self._cache: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, sizes: Sequence[Size], image_size: Size, device: torch.device | str = "cpu") -> Tensor:
        """All boxes for one size of batch.

        Args:
            sizes: Height and width of every feature map, finest first.
            image_size: Height and width of the padded batch in pixels.
            device: Device of the result.

        Returns:
            Tensor[A, 4]; cached and shared between calls: do not modify it.
        """
        assert len(sizes) == len(self.anchors_per_cell), f"{len(sizes)} of {len(self.anchors_per_cell)} maps"
        key = (tuple(tuple(size) for size in sizes), tuple(image_size), str(device))
        if key not in self._cache:
            if len(self._cache) == MAX_CACHED_SIZES:
                del self._cache[next(iter(self._cache))]
            # a tensor created in inference mode cannot take part in autograd later
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = self.generate(sizes, image_size).to(device)
        return self._cache[key]

    def for_batch(self, features: Sequence[Tensor], images: Tensor) -> tuple[Tensor, list[int]]:
        """Anchors Tensor[A, 4] of a batch Tensor[B, 3, H, W] and its feature maps, and their counts."""
        sizes = feature_sizes(features)
        return self(sizes, (images.shape[2], images.shape[3]), images.device), self.counts(sizes)

    def counts(self, sizes: Sequence[Size]) -> list[int]:
        """Number of boxes per level."""
        return [h * w * each for (h, w), each in zip(sizes, self.anchors_per_cell, strict=True)]

    @abstractmethod
    def generate(self, sizes: Sequence[Size], image_size: Size) -> Tensor:
        """Tensor[A, 4], float32, on the CPU."""


class PyramidAnchorGenerator(AnchorGenerator):
    """Anchors of a feature pyramid (Ren et al. 2015, arXiv:1506.01497, section 3.1.1).

    An anchor of size s and aspect ratio r is `s / sqrt(r)` wide and `s * sqrt(r)` high. Its center at row i
    and column j of a map of stride t is `((j + offset) * t, (i + offset) * t)`.

    Equals `torchvision.models.detection.anchor_utils.AnchorGenerator` with the defaults below.

    Args:
        sizes: Square roots of the anchors' areas in pixels, per level.
        aspect_ratios: Height over width, for all levels. Within a cell, the ratio is the outer loop.
        strides: Stride of each level in pixels. None: image size over map size, rounded down, as in torchvision. The
            two differ where a side is not a multiple of the stride: P6 of 800 pixels has 13 rows, a stride of 61.
        offset: Position of the centers in their cells: 0 is the corner, 0.5 the middle.
        round: Round the corners of the base anchors to whole pixels.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        *,
        strides: Sequence[int] | None = None,
        offset: float = 0.0,
        round: bool = True,
    ) -> None:
        super().__init__()
        assert strides is None or len(strides) == len(sizes), "one stride per level"
        self.strides, self.offset = strides, offset
        self.anchors_per_cell = tuple(len(level) * len(aspect_ratios) for level in sizes)
        self.base_anchors = [self._base_anchors(level, aspect_ratios, round) for level in sizes]

    @staticmethod
    def _base_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], round: bool) -> Tensor:
        """Anchors of one cell, Tensor[anchors_per_cell, 4], centered at the origin."""
        height = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()[:, None]
        sides = torch.tensor(sizes, dtype=torch.float32)[None, :]
        x, y = ((1 / height) * sides).flatten() / 2, (height * sides).flatten() / 2
        boxes = torch.stack([-x, -y, x, y], dim=1)
        return boxes.round() if round else boxes

    def generate(self, sizes: Sequence[Size], image_size: Size) -> Tensor:
        """See `AnchorGenerator.generate`."""
        levels = []
        for i, (rows, columns) in enumerate(sizes):
            stride_y, stride_x = image_size[0] // rows, image_size[1] // columns
            if self.strides is not None:
                stride_y = stride_x = self.strides[i]
            y = (torch.arange(rows, dtype=torch.float32) + self.offset) * stride_y
            x = (torch.arange(columns, dtype=torch.float32) + self.offset) * stride_x
            centers = torch.cartesian_prod(y, x).flip(1).repeat(1, 2)  # [rows * columns, 4]: x, y, x, y
            levels.append((centers[:, None] + self.base_anchors[i][None]).flatten(0, 1))
        return torch.cat(levels)


class DefaultBoxGenerator(AnchorGenerator):
    """SSD's default boxes, or priors (Liu et al. 2015, arXiv:1512.02325, section 2.2).

    Each cell of map k has a square of side s_k, one of side sqrt(s_k s_{k+1}), and for each extra aspect
    ratio a one box of `s_k sqrt(a)` by `s_k / sqrt(a)` and one of `s_k / sqrt(a)` by `s_k sqrt(a)`.

    Equals `torchvision.models.detection.anchor_utils.DefaultBoxGenerator` unless `clip_centers` is set.

    Args:
        scales: Sides as a fraction of the image side, one more than the number of maps.
        aspect_ratios: Extra aspect ratios, per map.
        steps: Stride of each map in pixels; None: image size over map size, not rounded.
        clip_centers: Clip centers to the image, as the original code does: 114 of SSD300's 8,732 differ.
    """

    def __init__(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[Sequence[float]],
        *,
        steps: Sequence[int] | None = None,
        clip_centers: bool = False,
    ) -> None:
        super().__init__()
        assert len(scales) == len(aspect_ratios) + 1, "one scale more than maps"
        assert steps is None or len(steps) == len(aspect_ratios), "one step per map"
        self.steps, self.clip_centers = steps, clip_centers
        self.anchors_per_cell = tuple(2 + 2 * len(ratios) for ratios in aspect_ratios)
        self.sides = [self._sides(*pair, ratios) for pair, ratios in zip(pairwise(scales), aspect_ratios, strict=True)]

    @staticmethod
    def _sides(scale: float, following: float, ratios: Sequence[float]) -> Tensor:
        """Width and height of one cell's boxes, Tensor[anchors_per_cell, 2], as fractions of at most 1."""
        between = math.sqrt(scale * following)
        pairs = [(scale, scale), (between, between)]
        for ratio in ratios:
            wide, narrow = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            pairs += [(wide, narrow), (narrow, wide)]
        return torch.tensor(pairs, dtype=torch.float32).clamp(0, 1)

    def generate(self, sizes: Sequence[Size], image_size: Size) -> Tensor:
        """See `AnchorGenerator.generate`."""
        height, width = image_size
        levels = []
        for i, (rows, columns) in enumerate(sizes):
            y_cells, x_cells = float(rows), float(columns)
            if self.steps is not None:
                y_cells, x_cells = height / self.steps[i], width / self.steps[i]
            y, x = (torch.arange(rows) + 0.5) / y_cells, (torch.arange(columns) + 0.5) / x_cells
            centers = torch.cartesian_prod(y, x).flip(1)  # [rows * columns, 2]: x, y
            if self.clip_centers:
                centers = centers.clamp(0, 1)
            low = centers[:, None] - 0.5 * self.sides[i][None]  # [rows * columns, anchors_per_cell, 2]
            high = centers[:, None] + 0.5 * self.sides[i][None]
            levels.append(torch.cat([low, high], dim=2).flatten(0, 1))
        return torch.cat(levels) * torch.tensor([width, height, width, height])
