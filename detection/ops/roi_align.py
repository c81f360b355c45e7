"""RoIAlign over a feature pyramid (He et al. 2017, arXiv:1703.06870; Lin et al., 1612.03144), and RoIPool.

RoIAlign averages bilinear samples on a regular grid, and bilinear interpolation on a grid is separable: the
result is `rows @ map @ columns` with one small interpolation matrix per side. On a CPU, where torchvision's
backward pass is one serial loop, the matrix products are many times faster as long as the maps are small.

Letters: B pictures, R proposals of a picture, C channels, P side of the output, H and W of a map.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

SAMPLES = 2  # a side of each output cell
SMALL = {torch.bfloat16: 128 * 128, torch.float32: 64 * 64}
"""By the precision of matrix products: the largest map, in cells, for which they win on a CPU."""
HIGH, BAND = 64, 64  # a map with more rows is multiplied for so many neighbouring boxes at a time
OFF_THE_MAP = -99.0  # cells; all samples of a box there are outside
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # a box of this side is pooled from this level


class PyramidRoIAlign(nn.Module):
    """Pools proposals from the level of the pyramid that fits their size.

    Equals `torchvision.ops.MultiScaleRoIAlign(…, output_size, sampling_ratio=2)`, on one level too.

    Args:
        output_size: P.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, levels: list[Tensor], proposals: Tensor, image_height: int) -> Tensor:
        """Pool, without asking the device for a number where it is not the CPU.

        Args:
            levels: Maps Tensor[B, C, H, W], finest first.
            proposals: Tensor[B, R, 4], `x1, y1, x2, y2` in pixels of the batch and inside it.
            image_height: Of the padded batch, for the strides.

        Returns:
            Tensor[B * R, C, P, P], float32, in the order of the proposals.
        """
        strides = [2 ** round(math.log2(image_height / level.shape[2])) for level in levels]
        boxes = proposals.flatten(0, 1)
        picture = _pictures(proposals)
        chosen = self._levels(boxes, strides)
        if boxes.device.type == "cpu":
            return self._pool_on_cpu(levels, strides, boxes, picture, chosen)
        pooled = boxes.new_zeros(len(boxes), levels[0].shape[1], self.output_size, self.output_size)
        for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            # Boxes of other levels are moved off the map, where they are zeros and cost next to nothing: to
            # pick those of this level one would have to wait for their number.
            there = torch.where((chosen == i)[:, None], boxes, OFF_THE_MAP * stride)
            pooled = pooled + self._kernel(level, there, picture, stride)
        return pooled

    def _pool_on_cpu(
        self, levels: list[Tensor], strides: list[int], boxes: Tensor, picture: Tensor, chosen: Tensor
    ) -> Tensor:
        """Pool the boxes of each level, by matrix products where it is small, and put them in order."""
        rows, parts = [], []
        small = SMALL[torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32]
        for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            own = torch.where(chosen == i)[0]
            if len(own) == 0 and i:
                continue  # the first level's part says what shape nothing has
            if level.shape[2] * level.shape[3] <= small and len(own):
                if level.shape[2] > HIGH:  # neighbours reach the same few rows
                    own = own[boxes[own, 1].argsort()]
                    own = own[picture[own].argsort(stable=True)]
                part = separable_roi_align(level, boxes[own] / stride, picture[own], self.output_size).float()
            else:
                part = self._kernel(level, boxes[own], picture[own], stride)
            rows.append(own)
            parts.append(part)
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _kernel(self, level: Tensor, boxes: Tensor, picture: Tensor, stride: int) -> Tensor:
        rois = torch.cat([picture[:, None].to(boxes.dtype), boxes], dim=1)
        pooled: Tensor = roi_align(level.float(), rois, self.output_size, 1 / stride, SAMPLES)
        return pooled

    @staticmethod
    def _levels(boxes: Tensor, strides: list[int]) -> Tensor:
        """Tensor[R]: index into the levels, by the square root of the area."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIDE) + 1e-6)
        first, last = round(math.log2(strides[0])), round(math.log2(strides[-1]))
        return (level.clamp(first, last) - first).long()


class RoIPool(nn.Module):
    """Max over each cell of a proposal, its corners rounded to cells of one map (Girshick 2015, 1504.08083).

    Args:
        output_size: P.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, levels: list[Tensor], proposals: Tensor, image_height: int) -> Tensor:
        """Pool from the one level; see `PyramidRoIAlign.forward`."""
        (level,) = levels
        stride = 2 ** round(math.log2(image_height / level.shape[2]))
        rois = torch.cat([_pictures(proposals)[:, None].to(proposals.dtype), proposals.flatten(0, 1)], dim=1)
        pooled: Tensor = roi_pool(level.float(), rois, self.output_size, 1 / stride)
        return pooled


def _pictures(proposals: Tensor) -> Tensor:
    """Tensor[B * R], int64: which picture each of [B, R, 4] proposals belongs to."""
    batch, count = proposals.shape[:2]
    return torch.arange(batch, device=proposals.device)[:, None].expand(batch, count).flatten()


def separable_roi_align(maps: Tensor, boxes: Tensor, picture: Tensor, size: int) -> Tensor:
    """RoIAlign as matrix products.

    Args:
        maps: Tensor[B, C, H, W].
        boxes: Tensor[R, 4], `x1, y1, x2, y2` in cells of the map, one or more; they are not differentiated.
        picture: Tensor[R], int64, not falling: which of the B maps a box lies on. A picture's boxes are best
            in the order of their upper sides where the maps are high.
        size: P.

    Returns:
        Tensor[R, C, P, P]; the precision is that of matrix products under the current autocast.
    """
    channels, height, width = maps.shape[1:]
    rows = _interpolation(boxes[:, 1], boxes[:, 3], height, size)  # [R, P, H]
    columns = _interpolation(boxes[:, 0], boxes[:, 2], width, size)  # [R, P, W]
    parts = []
    for first, stop, top, bottom in _bands(boxes, picture, len(maps), height):
        band = maps[picture[first], :, top:bottom].permute(1, 0, 2).reshape(bottom - top, channels * width)
        row = rows[first:stop, :, top:bottom].reshape(-1, bottom - top)
        part = (row @ band).view(-1, size * channels, width)
        parts.append(part @ columns[first:stop].transpose(1, 2).to(part.dtype))  # [of R, P C, P]
    return torch.cat(parts).view(-1, size, channels, size).transpose(1, 2)


def _bands(boxes: Tensor, picture: Tensor, pictures: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Runs of boxes on one picture, and the rows of its map that they reach: first, stop, top, bottom."""
    ends = torch.bincount(picture, minlength=pictures).cumsum(0).tolist()
    for begin, end in pairwise([0, *ends]):
        if height <= HIGH and end > begin:
            yield begin, end, 0, height
            continue
        for first in range(begin, end, BAND):
            low, high = boxes[first : first + BAND, 1::2].unbind(1)
            # a box is taken to be one cell high at least, and a sample reads the cell it is in and the next
            top = min(max(int(low.min()) - 1, 0), height - 1)
            bottom = min(max(int(torch.maximum(low + 1, high).max()) + 2, top + 1), height)
            yield first, min(first + BAND, end), top, bottom


def _interpolation(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
    """Weights [R, P, cells] that take the mean of each output cell's samples along one side."""
    step = (high - low).clamp(min=1.0) / (size * SAMPLES)
    place = torch.arange(size * SAMPLES, device=low.device) + 0.5
    at = low[:, None] + place * step[:, None]  # [R, P SAMPLES]
    outside = (at < -1) | (at > cells)
    at = at.clamp(0, cells - 1)
    weights = (1 - (at[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    weights = weights.masked_fill(outside[..., None], 0.0)
    return weights.view(-1, size, SAMPLES, cells).mean(2)
