"""Operators of the exported graph whose number of results depends on the data, behind outputs of fixed shape.

For ONNX, torch.export records each as one node of this package, which `translations` writes as standard operators. For
`.pt2`, `plain_operators` records torchvision's.

Letters: B images, N boxes of an image, G groups, L levels, R proposals of all images, C channels, P output cells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align, roi_pool

from detection.ops.roi_align import SAMPLING_RATIO

FLOAT = 1  # onnx.TensorProto.FLOAT


_plain = False


@contextmanager
def plain_operators() -> Iterator[None]:
    """Trace torchvision's own operators, for programs that run without this package."""
    global _plain
    _plain = True
    try:
        yield
    finally:
        _plain = False


def keep_by_nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    """Non-maximum suppression of the boxes of each image, in each group by the group's scores.

    Args:
        boxes: Tensor[B, N, 4], `x1, y1, x2, y2`, float32.
        scores: Tensor[B, G, N]; a negative score takes no part.
        threshold: IoU above which the box with the lower score is dropped.
        limit: Number of boxes per group that are needed, those of the highest scores; more may be kept.

    Returns:
        Tensor[B, G, N], bool: true for kept boxes.
    """
    if not _plain:
        kept: Tensor = torch.ops.detection_export.nms(boxes, scores, threshold, limit)
        return kept
    return _keep(boxes, scores, threshold)


def stable_topk(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The `limit` greatest of Tensor[B, N] and their columns; of equal scores the first, as ONNX defines its TopK."""
    if not _plain:
        return scores.topk(limit)
    values, columns = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :limit], columns[:, :limit]


def align_by_level(
    levels: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor, scales: list[float], size: int
) -> Tensor:
    """RoIAlign of each box on its own level of a pyramid.

    Args:
        levels: Feature maps Tensor[B, C, H, W].
        boxes: Tensor[R, 4] in pixels of the batch.
        image: Tensor[R], int64, index of each box's image.
        level: Tensor[R], int64, index of each box's level.
        scales: Cells per pixel of each level.
        size: P.

    Returns:
        Tensor[R, C, P, P].
    """
    if not _plain:
        pooled: Tensor = torch.ops.detection_export.roi_align(levels, boxes, image, level, scales, size)
        return pooled
    return _align(levels, boxes, image, level, scales, size)


def pool_rois(features: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int) -> Tensor:
    """RoIPool of boxes [R, 4] from one map; see `align_by_level`."""
    if not _plain:
        pooled: Tensor = torch.ops.detection_export.roi_pool(features, boxes, image, scale, size)
        return pooled
    return _pool(features, boxes, image, scale, size)


def _keep(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    batch, groups, count = scores.shape
    tile = boxes.abs().amax().double() + 1  # each group on a tile of its own; float64 keeps the boxes exact
    corner = torch.arange(batch * groups, device=boxes.device) * (2 * tile)
    tiled = boxes.double()[:, None].expand(batch, groups, count, 4).flatten(0, 1) + corner[:, None, None]
    flat = scores.flatten()
    rows = (flat >= 0).nonzero()[:, 0]
    kept = rows[nms(tiled.flatten(0, 1)[rows], flat[rows].double(), threshold)]
    return torch.zeros_like(flat, dtype=torch.bool).index_fill(0, kept, True).view(batch, groups, count)


def _align(
    levels: Sequence[Tensor], boxes: Tensor, image: Tensor, level: Tensor, scales: Sequence[float], size: int
) -> Tensor:
    pooled = boxes.new_zeros(boxes.shape[0], levels[0].shape[1], size, size)
    for i, (features, scale) in enumerate(zip(levels, scales, strict=True)):
        rows = (level == i).nonzero()[:, 0]
        rois = torch.cat([image[rows, None].to(boxes), boxes[rows]], dim=1)
        pooled = pooled.index_put((rows,), roi_align(features, rois, size, scale, SAMPLING_RATIO))
    return pooled


def _pool(features: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int) -> Tensor:
    rois = torch.cat([image[:, None].to(boxes), boxes], dim=1)
    pooled: Tensor = roi_pool(features, rois, size, scale)
    return pooled


@torch.library.custom_op("detection_export::nms", mutates_args=())
def _nms_node(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    return _keep(boxes, scores, threshold)


@_nms_node.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op("detection_export::roi_align", mutates_args=())
def _roi_align_node(
    levels: Sequence[Tensor], boxes: Tensor, image: Tensor, level: Tensor, scales: Sequence[float], size: int
) -> Tensor:
    return _align(levels, boxes, image, level, scales, size)


@_roi_align_node.register_fake
def _(
    levels: Sequence[Tensor], boxes: Tensor, image: Tensor, level: Tensor, scales: Sequence[float], size: int
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], levels[0].shape[1], size, size)


@torch.library.custom_op("detection_export::roi_pool", mutates_args=())
def _roi_pool_node(features: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int) -> Tensor:
    return _pool(features, boxes, image, scale, size)


@_roi_pool_node.register_fake
def _(features: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int) -> Tensor:
    return boxes.new_empty(boxes.shape[0], features.shape[1], size, size)


def _onnx_nms(boxes: Any, scores: Any, threshold: float, limit: int) -> Any:
    from onnxscript import opset18 as op

    kept = op.NonMaxSuppression(  # [M, 3]: image, group, box
        boxes,
        scores,
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[-0.5]),
    )
    none = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(kept, end=1))
    return op.Greater(op.ScatterND(none, kept, ones), op.Constant(value_float=0.5))


def _onnx_roi_align(
    levels: Sequence[Any], boxes: Any, image: Any, level: Any, scales: Sequence[float], size: int
) -> Any:
    from onnxscript import opset18 as op

    rows_of_all, parts = [], []
    for i, (features, scale) in enumerate(zip(levels, scales, strict=True)):
        own = op.NonZero(op.Equal(level, op.Constant(value_int=i)))
        rows = op.Squeeze(own, op.Constant(value_ints=[0]))
        part = op.RoiAlign(
            features,
            op.Gather(boxes, rows, axis=0),
            op.Gather(image, rows, axis=0),
            coordinate_transformation_mode="output_half_pixel",
            output_height=size,
            output_width=size,
            sampling_ratio=SAMPLING_RATIO,
            spatial_scale=scale,
        )
        rows_of_all.append(rows)
        parts.append(part)
    order = op.Concat(*rows_of_all, axis=0)
    ascending = op.Range(op.Constant(value_int=0), op.Size(order), op.Constant(value_int=1))
    inverse = op.ScatterElements(order, order, ascending, axis=0)  # of the permutation `order`
    return op.Gather(op.Concat(*parts, axis=0), inverse, axis=0)


def _onnx_roi_pool(features: Any, boxes: Any, image: Any, scale: float, size: int) -> Any:
    from onnxscript import opset18 as op

    image = op.Unsqueeze(op.Cast(image, to=FLOAT), op.Constant(value_ints=[1]))
    rois = op.Concat(image, boxes, axis=1)
    return op.MaxRoiPool(features, rois, pooled_shape=[size, size], spatial_scale=scale)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translation of each operator to standard ONNX operators."""
    own = torch.ops.detection_export
    return {own.nms.default: _onnx_nms, own.roi_align.default: _onnx_roi_align, own.roi_pool.default: _onnx_roi_pool}
