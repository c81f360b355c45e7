"""RoIAlign over a feature pyramid (He et al. 2017, arXiv:1703.06870; Lin et al., 1612.03144), and RoIPool.

RoIAlign averages bilinear samples on a regular grid, and bilinear interpolation on a grid is separable: the
result is `rows @ map @ columns` with one small interpolation matrix per side. On a CPU, where torchvision's
backward pass is one serial loop, the matrix products are many times faster as long as the maps are small.

Letters: B images, R proposals of an image, C channels, P side of the output in cells, H and W of a map.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

SAMPLING_RATIO = 2  # samples per side of an output cell
MAX_MATMUL_CELLS = {torch.bfloat16: 128 * 128, torch.float32: 64 * 64}
"""Largest map in cells for which matrix products are faster on a CPU, by the precision of the products."""
BAND_ROWS, BAND_BOXES = 64, 64  # maps with more rows are multiplied in bands, for that many boxes at a time
OUTSIDE_CELL = -99.0  # coordinate in cells at which all samples of a box are outside the map
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a box of this size in pixels is pooled from this level


class PyramidRoIAlign(nn.Module):
    """RoIAlign of each proposal on the pyramid level that fits its size.

    A box of width w and height h is pooled from level `floor(4 + log2(sqrt(w h) / 224))` (Lin et al., eq. 1),
    clamped to the levels there are. Equals `torchvision.ops.MultiScaleRoIAlign(..., output_size,
    sampling_ratio=2)`, for a single level too.

    Args:
        output_size: P.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, levels: list[Tensor], proposals: Tensor, image_height: int, image_width: int) -> Tensor:
        """Pool all proposals; no synchronization except on a CPU and in deterministic mode.

        Args:
            levels: Feature maps Tensor[B, C, H, W], finest first.
            proposals: Tensor[B, R, 4], `x1, y1, x2, y2` in pixels of the batch and inside it.
            image_height: Height of the padded batch, for the strides.
            image_width: Its width.

        Returns:
            Tensor[B * R, C, P, P], float32, in the order of the proposals.
        """
        strides = [_stride(level, image_height) for level in levels]
        boxes, image = proposals.flatten(0, 1), _image_index(proposals)
        level_index = self.level_index(boxes, strides)
        if boxes.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
            return self._pool_by_level(levels, strides, boxes, image, level_index)
        return self._pool_all(levels, strides, boxes, image, level_index)

    def _pool_all(
        self, levels: list[Tensor], strides: list[int], boxes: Tensor, image: Tensor, level_index: Tensor
    ) -> Tensor:
        """Pool all boxes from each level without a synchronization, and add up.

        Boxes of other levels are moved off the map, where they are zeros and almost free: selecting the boxes of a
        level would synchronize to get their number.
        """
        parts = (
            self._kernel(level, torch.where((level_index == i)[:, None], boxes, OUTSIDE_CELL * stride), image, stride)
            for i, (level, stride) in enumerate(zip(levels, strides, strict=True))
        )
        pooled = next(parts)
        for part in parts:
            pooled.add_(part)
        return pooled

    def _pool_by_level(
        self, levels: list[Tensor], strides: list[int], boxes: Tensor, image: Tensor, level_index: Tensor
    ) -> Tensor:
        """Pool level by level, by matrix products where the map is small, and restore the order.

        On a GPU, in deterministic mode, always by matrix products: the kernel's backward pass adds in any order, and
        torchvision's replacement for it takes gigabytes.
        """
        rows, parts = [], []
        limit: float = MAX_MATMUL_CELLS[torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32]
        if boxes.device.type != "cpu":
            limit = math.inf
        for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            own = torch.where(level_index == i)[0]
            if len(own) == 0 and i:
                continue  # the first level always runs, for the shape of an empty result
            if level.shape[2] * level.shape[3] <= limit and len(own):
                if level.shape[2] > BAND_ROWS:  # neighboring boxes read the same rows
                    own = own[boxes[own, 1].argsort()]
                    own = own[image[own].argsort(stable=True)]
                part = separable_roi_align(level, boxes[own] / stride, image[own], self.output_size).float()
            else:
                part = self._kernel(level, boxes[own], image[own], stride)
            rows.append(own)
            parts.append(part)
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _kernel(self, level: Tensor, boxes: Tensor, image: Tensor, stride: int) -> Tensor:
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)  # [R, 5]
        pooled: Tensor = roi_align(level.float(), rois, self.output_size, 1 / stride, SAMPLING_RATIO)
        return pooled

    @staticmethod
    def level_index(boxes: Tensor, strides: list[int]) -> Tensor:
        """Tensor[R]: index into the levels, by the square root of the area."""
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE) + 1e-6)
        first, last = round(math.log2(strides[0])), round(math.log2(strides[-1]))
        return (level.clamp(first, last) - first).long()


class RoIPool(nn.Module):
    """Maximum over each cell of a proposal, corners rounded to cells (Girshick 2015, 1504.08083).

    Args:
        output_size: P.
        by_sides: Scale proposals by the sides of map and image (38/600) instead of the stride (1/16), as in
            bubbliiiing's code: half a cell less at the far edge, where the anchors have the stride.
    """

    def __init__(self, output_size: int, by_sides: bool = False) -> None:
        super().__init__()
        self.output_size, self.by_sides = output_size, by_sides

    def forward(self, levels: list[Tensor], proposals: Tensor, image_height: int, image_width: int) -> Tensor:
        """Pool from the single level; see `PyramidRoIAlign.forward`."""
        (level,) = levels
        image = _image_index(proposals)[:, None].to(proposals.dtype)
        boxes, scale = proposals.flatten(0, 1), 1 / _stride(level, image_height)
        if self.by_sides:
            sides = boxes.new_tensor([image_width, image_height] * 2)
            boxes, scale = boxes / sides * boxes.new_tensor([level.shape[3], level.shape[2]] * 2), 1.0
        pooled: Tensor = roi_pool(level.float(), torch.cat([image, boxes], dim=1), self.output_size, scale)
        return pooled


def _stride(level: Tensor, image_height: int) -> int:
    """Stride of a feature map, a power of two."""
    return int(2 ** round(math.log2(image_height / level.shape[2])))


def _image_index(proposals: Tensor) -> Tensor:
    """Tensor[B * R], int64: index of the image that each of [B, R, 4] proposals belongs to."""
    batch, count = proposals.shape[:2]
    return torch.arange(batch, device=proposals.device)[:, None].expand(batch, count).flatten()


def separable_roi_align(maps: Tensor, boxes: Tensor, image: Tensor, size: int) -> Tensor:
    """RoIAlign as matrix products.

    Args:
        maps: Tensor[B, C, H, W].
        boxes: Tensor[R, 4], at least one, `x1, y1, x2, y2` in cells of the map; not differentiated.
        image: Tensor[R], int64, ascending: index of each box's map. Boxes sorted by their upper edge are fastest.
        size: P.

    Returns:
        Tensor[R, C, P, P], in the precision of matrix products under the current autocast.
    """
    channels, height, width = maps.shape[1:]
    rows = _interpolation(boxes[:, 1], boxes[:, 3], height, size)  # [R, P, H]
    columns = _interpolation(boxes[:, 0], boxes[:, 2], width, size)  # [R, P, W]
    parts = []
    for first, stop, top, bottom in _bands(boxes, image, len(maps), height):
        band = maps[image[first], :, top:bottom].permute(1, 0, 2).reshape(bottom - top, channels * width)
        row = rows[first:stop, :, top:bottom].reshape(-1, bottom - top)
        part = (row @ band).view(-1, size * channels, width)
        parts.append(part @ columns[first:stop].transpose(1, 2).to(part.dtype))  # [boxes, P * C, P]
    return torch.cat(parts).view(-1, size, channels, size).transpose(1, 2)


def _bands(boxes: Tensor, image: Tensor, images: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Runs of boxes of one image, and the map rows that they read: first, stop, top, bottom."""
    ends = torch.bincount(image, minlength=images).cumsum(0).tolist()
    for begin, end in pairwise([0, *ends]):
        if height <= BAND_ROWS and end > begin:
            yield begin, end, 0, height
            continue
        for first in range(begin, end, BAND_BOXES):
            low, high = boxes[first : first + BAND_BOXES, 1::2].unbind(1)
            # a box counts as at least one cell high, and a sample reads its own cell and the next
            top = min(max(int(low.min()) - 1, 0), height - 1)
            bottom = min(max(int(torch.maximum(low + 1, high).max()) + 2, top + 1), height)
            yield first, min(first + BAND_BOXES, end), top, bottom


def _interpolation(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
    """Weights [R, P, cells] that average each output cell's samples along one side."""
    step = (high - low).clamp(min=1.0) / (size * SAMPLING_RATIO)
    sample = torch.arange(size * SAMPLING_RATIO, device=low.device) + 0.5
    position = low[:, None] + sample * step[:, None]  # [R, P * SAMPLING_RATIO]
    outside = (position < -1) | (position > cells)
    position = position.clamp(0, cells - 1)
    weights = (1 - (position[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    weights = weights.masked_fill(outside[..., None], 0.0)
    return weights.view(-1, size, SAMPLING_RATIO, cells).mean(2)
