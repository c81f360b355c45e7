"""A detector as one graph: from images to padded detections, without control flow that depends on the data.

Equals `Detector.detect`, which starts with few candidates and computes more only if needed; a graph takes all at once.

Letters: B images, A anchors, K classes, N candidates, P proposals, D detections of an image. Boxes are float32
`x1, y1, x2, y2`.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection.data.loading.batch import STRIDE
from detection.export.operators import align_by_level, keep_by_nms, pool_rois, stable_topk
from detection.models.detector import BackboneDetector, Detector
from detection.models.faster_rcnn import ROI_WEIGHTS, FasterRCNN, centered_inside
from detection.models.fcos import FCOS
from detection.models.postprocess import MIN_SIZE, Decode, batched_gather, clip
from detection.models.retinanet import RetinaNet
from detection.models.ssd import SSD, WEIGHTS
from detection.ops.anchors import AnchorGenerator, feature_sizes
from detection.ops.box_coder import decode, decode_edges
from detection.ops.roi_align import PyramidRoIAlign, RoIPool

Padded = tuple[Tensor, Tensor, Tensor]
"""Boxes [B, D, 4], scores [B, D] and labels [B, D]; rows of no detection have a score of -1."""


class DetectorGraph(nn.Module):
    """Images and their sizes to detections.

    Args:
        detector: Detector in evaluation mode, on the CPU.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = cast(BackboneDetector, detector)
        self.strides = _strides(self.detector) if isinstance(detector, FasterRCNN) else []

    def forward(self, images: Tensor, resized: Tensor, original: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect on a batch.

        Args:
            images: Tensor[B, 3, H, W], uint8 RGB, resized and padded.
            resized: Tensor[B, 2], int64, height and width of each image in the batch.
            original: Tensor[B, 2], int64, height and width of each image file.

        Returns:
            Boxes [B, D, 4] in pixels of the image files, scores [B, D] in descending order, labels [B, D], and the
            number of detections [B]; the rows after it are zeros.
        """
        boxes, scores, labels = _detections(self.detector, images, resized, self.strides)
        valid = scores >= 0
        scale = (original.float() / resized.float()).flip(1).repeat(1, 2)[:, None]
        boxes = clip(boxes * scale, original)
        return (
            torch.where(valid[..., None], boxes, 0.0),
            torch.where(valid, scores, 0.0),
            torch.where(valid, labels, 0),
            valid.sum(1),
        )


class CoreGraph(nn.Module):
    """Images to the raw outputs of the heads, and the anchors that they belong to.

    Args:
        detector: Detector in evaluation mode, on the CPU.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = cast(BackboneDetector, detector)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs for Tensor[B, 3, H, W], uint8 RGB, resized and padded; see `Detector.core`."""
        features = self.detector.features(images)
        outputs = self.detector.raw_outputs(features)
        two_stage = isinstance(self.detector, FasterRCNN)
        generator: Any = self.detector.rpn.anchors if two_stage else self.detector.anchors  # type: ignore[union-attr]
        outputs["anchors"], _ = _anchors(generator, features, images)
        return outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Values of `outputs`."""
        return tuple(self.outputs(images).values())


class BoxHead(nn.Module):
    """Second stage of a two-stage detector: pooled features Tensor[R, C, P, P] to class logits and deltas.

    Args:
        detector: Detector in evaluation mode, on the CPU.
    """

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.head, self.predictor = detector.roi_heads.box_head, detector.roi_heads.box_predictor

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, K + 1], class 0 being the background, and deltas [R, (K + 1) * 4]."""
        logits, deltas = self.predictor(self.head(pooled))
        return logits, deltas


def _strides(detector: BackboneDetector) -> list[int]:
    """Pixels per cell of each feature map; two levels of MobileNet's pyramid have the same."""
    side = 8 * STRIDE
    with torch.no_grad():
        return [side // level.shape[2] for level in detector.features(torch.zeros(1, 3, side, side))]


def _detections(detector: BackboneDetector, images: Tensor, resized: Tensor, strides: list[int]) -> Padded:
    features = detector.features(images)
    if isinstance(detector, FasterRCNN):
        return _two_stage(detector, features, images, resized, strides)
    if isinstance(detector, SSD):
        return _ssd(detector, features, images, resized)
    assert isinstance(detector, RetinaNet | FCOS)
    anchors, counts = _anchors(detector.anchors, features, images)
    if isinstance(detector, FCOS):
        logits, (outputs, centerness) = detector.head(features)
        scores = (logits.sigmoid() * centerness.sigmoid()).sqrt()
        coder: Decode = decode_edges
    else:
        logits, outputs = detector.head(features)
        scores, coder = logits.sigmoid(), decode
    return _pyramid(detector, scores, outputs, anchors, counts, coder, resized)


def _anchors(generator: AnchorGenerator, features: list[Tensor], images: Tensor) -> tuple[Tensor, list[int]]:
    """Anchors Tensor[A, 4], computed in the graph, and their number per level."""
    sizes = feature_sizes(features)
    return generator.generate(sizes, (images.shape[2], images.shape[3])), generator.counts(sizes)


def _topk(values: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
    """The `limit` greatest of [B, count] and their columns, padded by -inf at column 0."""
    best, columns = F.pad(values, (0, limit), value=-torch.inf).topk(limit)
    return best, torch.where(columns < count, columns, 0)


def _best(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int) -> Padded:
    """The `limit` rows of the highest scores, the first of equal ones; scores of -1 mark rows of no detection."""
    scores, rows = stable_topk(scores, min(limit, scores.shape[1]))
    return batched_gather(boxes, rows), scores, labels.gather(1, rows)


def _pyramid(
    detector: RetinaNet | FCOS,
    scores: Tensor,
    outputs: Tensor,
    anchors: Tensor,
    counts: list[int],
    coder: Decode,
    resized: Tensor,
) -> Padded:
    recipe, classes, first = detector.recipe, scores.shape[2], 0
    limit, parts = recipe.topk_per_level, []
    for count in counts:
        level = scores.narrow(1, first, count)
        best, rows = _topk(level.amax(2), count, limit)
        pairs = torch.where(torch.isfinite(best)[..., None], batched_gather(level, rows), -1.0).flatten(1)
        values, pair = pairs.topk(limit)
        parts.append((values, rows.gather(1, pair // classes) + first, pair % classes))
        first += count
    values, index, labels = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    boxes = coder(batched_gather(outputs, index), anchors[index])
    boxes = clip(boxes, resized) if recipe.clip_before_nms else boxes
    values = torch.where(values > recipe.score_threshold, values, -1.0)
    agnostic = isinstance(detector, RetinaNet) and recipe.class_agnostic_nms  # type: ignore[union-attr]
    if agnostic:
        grouped = values[:, None]
    else:
        own = labels[:, None] == torch.arange(classes)[None, :, None]
        grouped = torch.where(own, values[:, None], -1.0)  # [B, K, N]
    keep = keep_by_nms(boxes, grouped, recipe.nms_threshold, recipe.detections_per_image)
    kept = torch.where(keep, grouped, -1.0).amax(1)
    return _best(boxes, kept, labels, recipe.detections_per_image)


def _ssd(detector: SSD, features: list[Tensor], images: Tensor, resized: Tensor) -> Padded:
    recipe = detector.recipe
    logits, deltas = detector.head(features)
    anchors, _ = _anchors(detector.anchors, features, images)
    boxes = decode(deltas, anchors, WEIGHTS)
    boxes = clip(boxes, resized) if recipe.clip_before_nms else boxes
    scores = logits.softmax(-1)[..., 1:].transpose(1, 2)  # [B, K, A]
    classes, count = scores.shape[1:]
    limit = min(recipe.topk_candidates, count)
    least = scores.topk(limit).values[..., -1:]
    scores = torch.where((scores >= least) & (scores > recipe.score_threshold), scores, -1.0)
    keep = keep_by_nms(boxes, scores, recipe.nms_threshold, recipe.detections_per_image)
    kept = torch.where(keep, scores, -1.0).flatten(1)
    values, pairs = kept.topk(min(recipe.detections_per_image, classes * count))
    return batched_gather(boxes, pairs % count), values, pairs // count


def _two_stage(
    detector: FasterRCNN, features: list[Tensor], images: Tensor, resized: Tensor, strides: list[int]
) -> Padded:
    proposals, mask = _proposals(detector, features, images, resized)
    recipe, (batch, count) = detector.recipe, mask.shape
    logits, deltas = _heads(detector, features, proposals, images, strides)
    classes = logits.shape[1] - 1
    scores = (logits.softmax(1)[:, 1:].view(batch, count, classes) * mask[..., None]).transpose(1, 2)  # [B, K, P]
    deltas = deltas.view(batch, count, classes + 1, 4)[:, :, 1:].transpose(1, 2)  # [B, K, P, 4]
    boxes = decode(deltas, proposals[:, None], ROI_WEIGHTS).flatten(1, 2)  # [B, K * P, 4]
    boxes = clip(boxes, resized) if recipe.clip_before_nms else boxes
    sides = (boxes[..., 2:] - boxes[..., :2]).view(batch, classes, count, 2)
    scores = torch.where((scores > recipe.score_threshold) & (sides >= MIN_SIZE).all(3), scores, -1.0)
    single = boxes.view(batch * classes, count, 4), scores.reshape(batch * classes, 1, count)
    keep = keep_by_nms(*single, recipe.nms_threshold, recipe.detections_per_image)
    kept = torch.where(keep, single[1], -1.0).view(batch, classes, count)
    # by proposal, then class: `topk_of_proposals` orders equal scores so, which RoIPool gives neighboring proposals
    boxes = boxes.view(batch, classes, count, 4).transpose(1, 2).flatten(1, 2)
    labels = torch.arange(classes)[None].expand(count, classes).flatten().expand(batch, -1)
    return _best(boxes, kept.transpose(1, 2).flatten(1), labels, recipe.detections_per_image)


def _proposals(detector: FasterRCNN, features: list[Tensor], images: Tensor, resized: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals Tensor[B, P, 4] and a mask Tensor[B, P], false for padding; see `RPN.propose`."""
    rpn = detector.recipe.rpn
    logits, deltas = detector.rpn(features)
    anchors, counts = _anchors(detector.rpn.anchors, features, images)
    if detector.recipe.anchors.strides is not None:
        logits = logits.masked_fill(~centered_inside(anchors, resized), -torch.inf)
    limit, first, parts = rpn.pre_nms_top_n.test, 0, []
    for count in counts:
        values, rows = _topk(logits.narrow(1, first, count), count, limit)
        parts.append((values, rows + first))
        first += count
    scores, index = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
    boxes = clip(decode(batched_gather(deltas, index), anchors[index]), resized)  # [B, N, 4]
    sides = boxes[..., 2:] - boxes[..., :2]
    valid = (sides >= rpn.min_size).all(dim=2) & (scores.sigmoid() >= rpn.score_threshold) & (scores > -torch.inf)
    batch, levels = scores.shape[0], len(counts)
    rank = 1 - torch.arange(limit) / limit  # logits are sorted: their order, without ties
    ranks = torch.where(valid.view(batch * levels, 1, limit), rank, -1.0)
    keep = keep_by_nms(boxes.view(batch * levels, limit, 4), ranks, rpn.nms_threshold, limit)
    scores = scores.masked_fill(~keep.view(batch, levels * limit), -torch.inf)
    values, best = scores.topk(min(rpn.post_nms_top_n.test, levels * limit), dim=1)
    mask = values > -torch.inf
    return torch.where(mask[..., None], batched_gather(boxes, best), 0.0), mask


def _heads(
    detector: FasterRCNN, features: list[Tensor], proposals: Tensor, images: Tensor, strides: list[int]
) -> tuple[Tensor, Tensor]:
    """Class logits and deltas of all proposals of the batch, [B * P, ...]."""
    roi, maps = detector.roi_heads, features[:-1] if len(features) > 1 else features
    batch, count = proposals.shape[:2]
    boxes, image = proposals.flatten(0, 1), torch.arange(batch)[:, None].expand(batch, count).flatten()
    if isinstance(roi.pool, PyramidRoIAlign):
        strides = strides[: len(maps)]
        level = roi.pool.level_index(boxes, strides)
        pooled = align_by_level(maps, boxes, image, level, [1 / stride for stride in strides], roi.pool.output_size)
    else:
        assert isinstance(roi.pool, RoIPool)
        assert detector.recipe.anchors.strides is not None, "one map"
        (features_map,), scale = maps, 1 / detector.recipe.anchors.strides[0]
        if roi.pool.by_sides:
            boxes, scale = boxes / _sides(images) * _sides(features_map), 1.0
        pooled = pool_rois(features_map, boxes, image, scale, roi.pool.output_size)
    logits, deltas = roi.box_predictor(roi.box_head(pooled))
    return logits, deltas


def _sides(images: Tensor) -> Tensor:
    """Tensor[4]: width, height, width, height of Tensor[B, C, H, W]."""
    height, width = (torch.full((), images.shape[i], dtype=torch.float32) for i in (2, 3))
    return torch.stack([width, height, width, height])
