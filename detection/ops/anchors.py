"""Anchors and default boxes: the boxes that a detector starts from, the same for every picture of a size.

Letters: A anchors of all levels together, in the order level, row, column, anchor of the place.
Boxes are float32 `x1, y1, x2, y2`, absolute pixels of the batch; they may reach beyond the picture.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, int]
"""Height and width."""
KEPT = 64  # grids in a cache; pictures that keep their aspect ratio come in about so many padded sizes


class Grid(ABC):
    """Boxes at every place of some feature maps, made once for each set of map sizes.

    Invariant: `len(grid(maps, picture)) == sum(grid.counts(maps))`.
    """

    per_place: tuple[int, ...]
    """Boxes at each place, per level."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Tensor] = {}

    def __call__(
        self,
        maps: Sequence[Size],
        picture: Size,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """All boxes of a batch's pictures.

        Args:
            maps: Height and width of every feature map, finest first.
            picture: Height and width of the padded batch, in pixels.
            device: Where they are wanted.
            dtype: Of the result; they are computed in float32.

        Returns:
            Tensor[A, 4]; shared between calls, so never write into it.
        """
        assert len(maps) == len(self.per_place), f"{len(maps)} maps for {len(self.per_place)} levels"
        key = (tuple(tuple(size) for size in maps), tuple(picture), str(device), dtype)
        if key not in self._made:
            if len(self._made) == KEPT:
                del self._made[next(iter(self._made))]
            # a tensor made in inference mode could never be used in training
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = self._make(maps, picture).to(device, dtype)
        return self._made[key]

    def counts(self, maps: Sequence[Size]) -> list[int]:
        """How many boxes each level has."""
        return [h * w * each for (h, w), each in zip(maps, self.per_place, strict=True)]

    @abstractmethod
    def _make(self, maps: Sequence[Size], picture: Size) -> Tensor:
        """Tensor[A, 4], float32, on the CPU."""


class AnchorGrid(Grid):
    """Anchors of a pyramid (Ren et al. 2015, arXiv:1506.01497, section 3.1.1).

    An anchor of side s and aspect ratio r is `s / sqrt(r)` wide and `s * sqrt(r)` high. Its centre at row i
    and column j of a map of stride t is `((j + offset) * t, (i + offset) * t)`.

    Equals `torchvision.models.detection.anchor_utils.AnchorGenerator` with the defaults below.

    Args:
        sizes: Sides in pixels, per level.
        aspect_ratios: Height over width, for all levels. At a place the ratios are the outer loop.
        strides: Of each level in pixels. None: picture size over map size, rounded down, as torchvision has
            it. The two differ where a side is no multiple of the stride: P6 of 800 pixels has 13 rows and
            hence a stride of 61.
        offset: Of the centres, in cells: 0 is a cell's corner, 0.5 its middle.
        rounded: Round the corners of the anchor at the origin to whole pixels.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        *,
        strides: Sequence[int] | None = None,
        offset: float = 0.0,
        rounded: bool = True,
    ) -> None:
        super().__init__()
        assert strides is None or len(strides) == len(sizes), "a stride for each level"
        self.strides, self.offset = strides, offset
        self.per_place = tuple(len(level) * len(aspect_ratios) for level in sizes)
        self.at_origin = [self._at_origin(level, aspect_ratios, rounded) for level in sizes]

    @staticmethod
    def _at_origin(sizes: Sequence[float], aspect_ratios: Sequence[float], rounded: bool) -> Tensor:
        """The anchors of one place, Tensor[per_place, 4], around the origin."""
        height = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()[:, None]
        sides = torch.tensor(sizes, dtype=torch.float32)[None, :]
        x, y = ((1 / height) * sides).flatten() / 2, (height * sides).flatten() / 2
        boxes = torch.stack([-x, -y, x, y], dim=1)
        return boxes.round() if rounded else boxes

    def _make(self, maps: Sequence[Size], picture: Size) -> Tensor:
        levels = []
        for i, (rows, columns) in enumerate(maps):
            down, across = picture[0] // rows, picture[1] // columns
            if self.strides is not None:
                down = across = self.strides[i]
            y = (torch.arange(rows, dtype=torch.float32) + self.offset) * down
            x = (torch.arange(columns, dtype=torch.float32) + self.offset) * across
            centres = torch.cartesian_prod(y, x).flip(1).repeat(1, 2)  # [rows columns, 4], x y x y
            levels.append((centres[:, None] + self.at_origin[i][None]).flatten(0, 1))
        return torch.cat(levels)


class DefaultBoxes(Grid):
    """SSD's default boxes, or priors (Liu et al. 2015, arXiv:1512.02325, section 2.2).

    At a place of map k stand a square of side s_k, one of side sqrt(s_k s_{k+1}), and for each extra aspect
    ratio a a box of `s_k sqrt(a)` by `s_k / sqrt(a)` and the same upright.

    Equals `torchvision.models.detection.anchor_utils.DefaultBoxGenerator` unless `clip_centers` is set.

    Args:
        scales: Sides as a share of the picture, one more than there are maps.
        aspect_ratios: Extra aspect ratios, per map.
        steps: Stride of each map in pixels; None: picture size over map size, not rounded.
        clip: Sides are at most those of the picture.
        clip_centers: Centres lie in the picture too, as in the original's code: 114 of SSD300's 8,732 differ.
    """

    def __init__(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[Sequence[float]],
        *,
        steps: Sequence[int] | None = None,
        clip: bool = True,
        clip_centers: bool = False,
    ) -> None:
        super().__init__()
        assert len(scales) == len(aspect_ratios) + 1, "one scale more than maps"
        assert steps is None or len(steps) == len(aspect_ratios), "a step for each map"
        self.steps, self.clip_centers = steps, clip_centers
        self.per_place = tuple(2 + 2 * len(ratios) for ratios in aspect_ratios)
        self.sides = [
            self._sides(scale, following, ratios, clip)
            for scale, following, ratios in zip(scales[:-1], scales[1:], aspect_ratios, strict=True)
        ]

    @staticmethod
    def _sides(scale: float, following: float, ratios: Sequence[float], clip: bool) -> Tensor:
        """Width and height of the boxes of one place, Tensor[per_place, 2], as shares of the picture."""
        between = math.sqrt(scale * following)
        pairs = [(scale, scale), (between, between)]
        for ratio in ratios:
            wide, narrow = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            pairs += [(wide, narrow), (narrow, wide)]
        sides = torch.tensor(pairs, dtype=torch.float32)
        return sides.clamp(0, 1) if clip else sides

    def _make(self, maps: Sequence[Size], picture: Size) -> Tensor:
        levels = []
        for i, (rows, columns) in enumerate(maps):
            down, across = float(rows), float(columns)
            if self.steps is not None:
                down, across = picture[0] / self.steps[i], picture[1] / self.steps[i]
            centres = torch.cartesian_prod(
                (torch.arange(rows) + 0.5) / down, (torch.arange(columns) + 0.5) / across
            ).flip(1)  # [rows columns, 2], x y
            if self.clip_centers:
                centres = centres.clamp(0, 1)
            low = centres[:, None] - 0.5 * self.sides[i][None]  # [rows columns, per_place, 2]
            high = centres[:, None] + 0.5 * self.sides[i][None]
            levels.append(torch.cat([low, high], dim=2).flatten(0, 1))
        height, width = picture
        return torch.cat(levels) * torch.tensor([width, height, width, height])
