"""Fit of a recipe's anchors to a dataset: objects that no anchor matches, anchors that match no object.

A detector learns an object from its matched anchors. An object without a match may still get its best anchor
as a low-quality match (see `detection.ops.matcher`), but an anchor of low IoU has far to regress. The
fraction of objects with an anchor of IoU 0.5 is therefore an upper bound of the recall that the anchors make
easy.

Images have the recipe's size, without augmentation. The best anchor of a shape for an object is the one with
the nearest center in x and in y, because the IoU falls with either distance: exact, with one candidate per
shape.

Letters: T objects, S anchor shapes over all levels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from detection.data.loading.batch import STRIDE, pads_to_stride
from detection.data.loading.geometry import result_size
from detection.data.loading.index import Index
from detection.models.build import build_detector
from detection.models.detector import BackboneDetector
from detection.ops.anchors import AnchorGenerator, DefaultBoxGenerator, PyramidAnchorGenerator, Size, feature_sizes
from detection.params.recipe import FasterRCNNRecipe, RetinaNetRecipe, SSDRecipe

Floats = NDArray[np.float64]
AnchorRecipe = FasterRCNNRecipe | RetinaNetRecipe | SSDRecipe
FIT_IOU = 0.5
"""IoU from which an anchor fits an object. An RPN requires 0.7 and relies on low-quality matches."""
MIN_GAIN = 0.01
"""Minimum gain in the fraction of fitted objects for other anchor sizes to be suggested."""
SCALE_FACTORS = 2.0 ** (np.arange(-16, 9) / 4)
"""Scale factors tried on the recipe's anchor sizes: 1/16 to 4."""
MAX_ITERATIONS = 100


class AnchorShape(NamedTuple):
    """Anchors of one shape on one level, 0 the finest; sides in pixels, number of objects that they fit."""

    level: int
    width: float
    height: float
    matches: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """Best anchor of each training object."""

    positive_iou: float
    """The recipe's IoU threshold of positive anchors."""
    labels: NDArray[np.int64]
    """[T] labels of the objects."""
    best_iou: Floats
    """[T] largest IoU with any anchor."""
    sides: Floats
    """[T] square root of the area in pixels at the training size."""
    shapes: list[AnchorShape]
    """[S] anchor shapes."""

    def fraction(self, min_iou: float) -> float:
        """Fraction of the objects with an anchor of at least `min_iou`; NaN without objects."""
        return float(np.mean(self.best_iou >= min_iou)) if len(self.best_iou) else float("nan")

    def class_means(self) -> tuple[float, float]:
        """Means over the classes: fraction of fitted objects, and best IoU."""
        count = np.bincount(self.labels)
        fits = np.bincount(self.labels, self.best_iou >= FIT_IOU)[count > 0] / count[count > 0]
        best = np.bincount(self.labels, self.best_iou)[count > 0] / count[count > 0]
        return float(fits.mean()), float(best.mean())


class _Group(NamedTuple):
    """Objects of images that have one size in a batch."""

    rows: NDArray[np.int64]
    boxes: Floats
    """`x1, y1, x2, y2` in pixels of the resized image."""
    resized: Size
    padded: Size
    maps: list[Size]


class AnchorFit:
    """Anchors of a recipe on the images of a split.

    Args:
        recipe: A recipe with anchors.
        index: The split, without crowds and, unless the recipe trains on them, difficult objects.
        classes: Number of classes.
    """

    def __init__(self, recipe: AnchorRecipe, index: Index, classes: int) -> None:
        self.recipe = recipe
        self.index = index.keep_boxes(~index.crowd & (recipe.train_difficult | ~index.difficult))
        detector = build_detector(recipe, classes, None)
        assert isinstance(detector, BackboneDetector)
        self.detector = detector.eval()
        attributes = (value for part in self.detector.modules() for value in vars(part).values())
        self.anchors = next(value for value in attributes if isinstance(value, AnchorGenerator))
        self.inside_only = isinstance(recipe, FasterRCNNRecipe) and recipe.rpn.inside_anchors_only
        self.groups = list(self._groups())

    def coverage(self, anchors: AnchorGenerator | None = None) -> Coverage:
        """Coverage by the recipe's anchors, or by others on the same feature maps."""
        best, sides = np.zeros((2, len(self.index.labels)))
        shapes: dict[tuple[int, float, float], int] = {}
        for group in self.groups:
            sides[group.rows] = np.sqrt(np.prod(group.boxes[:, 2:] - group.boxes[:, :2], axis=1))
            for level, cells in enumerate(_levels(anchors or self.anchors, group)):
                for number in range(cells.shape[2]):
                    iou, (width, height) = self._best_of_shape(cells[:, :, number], group)
                    best[group.rows] = np.maximum(best[group.rows], iou)
                    key = (level, width, height)
                    shapes[key] = shapes.get(key, 0) + int(np.sum(iou >= FIT_IOU))
        recipe = self.recipe
        return Coverage(
            positive_iou=recipe.rpn.fg_iou if isinstance(recipe, FasterRCNNRecipe) else recipe.fg_iou,
            labels=self.index.labels,
            best_iou=best,
            sides=sides,
            shapes=[AnchorShape(*key, matches) for key, matches in shapes.items()],
        )

    def suggestion(self, own: Coverage) -> tuple[AnchorRecipe, Coverage, str] | None:
        """Find anchor sizes that fit more objects, averaged over the classes; None if no gain is worthwhile.

        Candidates are the recipe's sizes times one factor and, except for SSD's scales, k-means clusters of
        the objects' sides.

        Returns:
            The recipe with these sizes, their coverage, and the method that gave them.
        """
        if not len(own.labels):
            return None
        candidates = [
            (recipe, self.coverage(_with_sizes_of(recipe, self.anchors)), method)
            for recipe, method in _candidates(self.recipe, own.sides)
        ]
        best = max(candidates, key=lambda one: (round(one[1].class_means()[0], 2), one[1].class_means()[1]))
        return best if best[1].class_means()[0] >= own.class_means()[0] + MIN_GAIN else None

    def _groups(self) -> Iterator[_Group]:
        """Objects grouped by image size, with the sizes of the feature maps from a pass on fake tensors."""
        recipe, index = self.recipe, self.index
        max_size = recipe.max_size if recipe.resize == "keep" else None
        resized = np.array(
            [
                result_size(h, w, recipe.resize, recipe.image_size, max_size, recipe.size_rounding)
                for h, w in index.sizes.tolist()
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        unpadded = (resized[:, :1] == resized[:, 1:]) & (not pads_to_stride(recipe))
        padded = np.where(unpadded, resized, -(-resized // STRIDE) * STRIDE)
        # the resized size makes a difference only if anchors must lie inside the image
        keys = np.concatenate([padded, resized if self.inside_only else padded], axis=1)
        images = index.image_rows()
        scale = (resized / np.maximum(index.sizes, 1))[images]
        boxes = index.boxes.astype(np.float64) * scale[:, [1, 0, 1, 0]]
        groups, group_of = np.unique(keys, axis=0, return_inverse=True)
        for number, (height, width, *inside) in enumerate(groups.tolist()):
            rows = np.flatnonzero(group_of.reshape(-1)[images] == number)
            if len(rows):
                with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
                    maps = feature_sizes(self.detector.features(torch.zeros(1, 3, height, width)))
                yield _Group(rows, boxes[rows], tuple(inside), (height, width), maps)

    def _best_of_shape(self, anchors: Floats, group: _Group) -> tuple[Floats, tuple[float, float]]:
        """IoU of each object with its nearest anchor of a shape [rows, columns, 4], and width and height."""
        x1, x2 = anchors[0, :, 0], anchors[0, :, 2]
        y1, y2 = anchors[:, 0, 1], anchors[:, 0, 3]
        shape = (round(float(x2[0] - x1[0]), 2), round(float(y2[0] - y1[0]), 2))
        if self.inside_only:
            height, width = group.resized
            keep_x, keep_y = (x1 >= 0) & (x2 <= width), (y1 >= 0) & (y2 <= height)
            x1, x2, y1, y2 = x1[keep_x], x2[keep_x], y1[keep_y], y2[keep_y]
        if not len(x1) or not len(y1):
            return np.zeros(len(group.rows)), shape
        left, top, right, bottom = group.boxes.T
        column = _nearest((x1 + x2) / 2, (left + right) / 2)
        row = _nearest((y1 + y2) / 2, (top + bottom) / 2)
        overlap_x = np.minimum(x2[column], right) - np.maximum(x1[column], left)
        overlap_y = np.minimum(y2[row], bottom) - np.maximum(y1[row], top)
        intersection = np.clip(overlap_x, 0, None) * np.clip(overlap_y, 0, None)
        area = (x2 - x1)[column] * (y2 - y1)[row]
        union = area + (right - left) * (bottom - top) - intersection
        return np.divide(intersection, union, out=np.zeros(len(left)), where=union > 0), shape


def _levels(anchors: AnchorGenerator, group: _Group) -> Iterator[Floats]:
    """Anchors of each level, [rows, columns, shapes per cell, 4]."""
    boxes = anchors(group.maps, group.padded).numpy().astype(np.float64)
    start = 0
    for (rows, columns), count in zip(group.maps, anchors.anchors_per_cell, strict=True):
        stop = start + rows * columns * count
        yield boxes[start:stop].reshape(rows, columns, count, 4)
        start = stop


def _nearest(centers: Floats, points: Floats) -> NDArray[np.int64]:
    """Index of the nearest of some increasing centers for each point."""
    return np.searchsorted((centers[:-1] + centers[1:]) / 2, points)


def _with_sizes_of(recipe: AnchorRecipe, like: AnchorGenerator) -> AnchorGenerator:
    """Anchors `like` others with the sizes of a recipe."""
    if isinstance(recipe, SSDRecipe):
        boxes = recipe.default_boxes
        return DefaultBoxGenerator(
            boxes.scales, boxes.aspect_ratios, steps=boxes.steps, clip_centers=boxes.clip_centers
        )
    assert isinstance(like, PyramidAnchorGenerator)
    own = recipe.anchors
    return PyramidAnchorGenerator(
        own.sizes, own.aspect_ratios, strides=like.strides, offset=like.offset, round=own.round
    )


def _candidates(recipe: AnchorRecipe, sides: Floats) -> Iterator[tuple[AnchorRecipe, str]]:
    """Recipes with other anchor sizes, and the method that gave them."""
    if isinstance(recipe, SSDRecipe):
        for factor in SCALE_FACTORS.tolist():
            scales = tuple(round(scale * factor, 3) for scale in recipe.default_boxes.scales)
            if scales[-2] <= 1:
                other = recipe.update({"default_boxes.scales": scales})
                yield other, f"the recipe's scales times {factor:.2f}"
        return
    for factor in SCALE_FACTORS.tolist():
        yield _with_sizes(recipe, recipe.anchors.sizes, factor), f"the recipe's sizes times {factor:.2f}"
    sides = sides[sides > 0]
    if len(sides):
        yield _with_sizes(recipe, cluster(sides, recipe.anchors.sizes)), "k-means of the objects' sides"


def _with_sizes(recipe: AnchorRecipe, sizes: Sequence[Sequence[float]], factor: float = 1.0) -> AnchorRecipe:
    rounded = tuple(tuple(float(max(1, round(size * factor))) for size in level) for level in sizes)
    return recipe.update({"anchors.sizes": rounded})


def cluster(sides: Floats, layout: Sequence[Sequence[float]]) -> list[list[float]]:
    """Anchor sizes from the objects' sides by k-means, with the number of levels and sizes of `layout`.

    * One map, or the same sizes on all levels: each cluster is a size.
    * A pyramid: each cluster is the first size of a level, the smallest on the finest level; the other sizes
      of the level keep their ratio to the first.

    Args:
        sides: [T] square roots of the objects' areas in pixels, positive.
        layout: Sizes per level.
    """
    if all(list(level) == list(layout[0]) for level in layout):
        return [k_means(sides, len(layout[0]))] * len(layout)
    firsts = k_means(sides, len(layout))
    return [[first * size / level[0] for size in level] for first, level in zip(firsts, layout, strict=True)]


def k_means(sides: Floats, count: int) -> list[float]:
    """Increasing centers of Lloyd's k-means over the logarithm, initialized at quantiles.

    Concentric squares of sides s < t have IoU (s / t)², so a distance of logarithms is one of IoUs.
    """
    values = np.sort(np.log(sides))
    centers = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(MAX_ITERATIONS):
        parts = np.split(values, np.searchsorted(values, (centers[:-1] + centers[1:]) / 2))
        moved = np.array([part.mean() if len(part) else c for part, c in zip(parts, centers, strict=True)])
        if np.array_equal(moved, centers):
            break
        centers = moved
    sizes: list[float] = np.exp(centers).tolist()
    return sizes
