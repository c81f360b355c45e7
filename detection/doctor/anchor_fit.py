"""Do a recipe's anchors fit a dataset: which objects no anchor matches, which anchors match no object.

A matched anchor is what teaches a detector an object. An object that none matches may still claim its best
one (see `detection.ops.matcher`), but a claimed anchor that overlaps little has far to go. So the share of
objects that an anchor overlaps by half is a ceiling for the recall that the anchors make easy.

Pictures have the size that the recipe shows them at, without augmentation. The best anchor of a shape for an
object is the one whose centre is nearest in x and in y, because the overlap falls with either distance: one
look a shape instead of one an anchor, and still exact.

Letters: T objects, S anchor shapes of all levels.

Anchor sizes from a dataset's objects, by k-means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from detection.data.index import Index
from detection.data.loading.batch import STRIDE, pads_to_stride
from detection.data.loading.geometry import result_size
from detection.models.build import build_detector
from detection.models.detector import BackboneDetector, map_sizes
from detection.ops.anchors import AnchorGrid, DefaultBoxes, Grid, Size
from detection.params.recipe import FasterRCNNRecipe, FCOSRecipe, Recipe, RetinaNetRecipe, SSDRecipe

Floats = NDArray[np.float64]
FITS = 0.5
"""IoU from which an anchor is taken to fit an object; an RPN asks for more (0.7) and lives on claims."""
WORTHWHILE = 0.01
"""Share of the objects that other sizes must gain to be suggested."""
FACTORS = 2.0 ** (np.arange(-16, 9) / 4)
"""What all of a recipe's sizes are tried to be multiplied with: a sixteenth to four."""


class Shape(NamedTuple):
    """The anchors of one shape on one level."""

    level: int
    """From 0, the finest."""
    width: float
    """Pixels."""
    height: float
    matches: int
    """Objects that it overlaps by `FITS` or more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """How well anchors fit the objects that are trained on."""

    threshold: float
    """IoU from which an anchor is a positive, by the recipe."""
    labels: NDArray[np.int64]
    """[T]."""
    best: Floats
    """[T] largest IoU with any anchor."""
    sides: Floats
    """[T] root of an object's area, in pixels at training size."""
    shapes: list[Shape]
    """The S."""

    def share(self, least: float) -> float:
        """Of the objects with an anchor at some IoU; NaN without objects."""
        return float(np.mean(self.best >= least)) if len(self.best) else float("nan")

    def of_classes(self) -> tuple[float, float]:
        """Means over the classes: of the share of objects that an anchor fits, and of the best IoU."""
        count = np.maximum(np.bincount(self.labels), 1)
        fits = np.bincount(self.labels, self.best >= FITS) / count
        best, some = np.bincount(self.labels, self.best) / count, np.bincount(self.labels) > 0
        return float(fits[some].mean()), float(best[some].mean())


class _Group(NamedTuple):
    """Objects on pictures of one size."""

    rows: NDArray[np.int64]
    boxes: Floats
    """`x1, y1, x2, y2` in pixels of the resized picture."""
    inside: Size
    padded: Size
    maps: list[Size]


class Anchors:
    """The anchors of a recipe over a split's pictures.

    Args:
        recipe: Any but FCOS, which has no anchors.
        index: The split; difficult objects are left out unless the recipe trains on them, crowds always.
        classes: How many there are.
    """

    def __init__(self, recipe: Recipe, index: Index, classes: int) -> None:
        assert not isinstance(recipe, FCOSRecipe), "a place of FCOS has no anchor"
        self.recipe = recipe
        kept = ~index.crowd if recipe.train_difficult else ~(index.crowd | index.difficult)
        self.index = index.keep_boxes(kept)
        detector = build_detector(recipe, classes, None)
        self.grid = next(
            value for part in detector.modules() for value in vars(part).values() if isinstance(value, Grid)
        )
        assert isinstance(detector, BackboneDetector)
        self.detector = detector.eval()
        self.groups = list(self._groups())

    def coverage(self, grid: Grid | None = None) -> Coverage:
        """Of the recipe's own anchors, or of others on the same maps."""
        grid = grid or self.grid
        best, sides = np.zeros((2, len(self.index.labels)))
        shapes: dict[tuple[int, float, float], int] = {}
        for group in self.groups:
            sides[group.rows] = np.sqrt(np.prod(group.boxes[:, 2:] - group.boxes[:, :2], axis=1))
            for level, place in enumerate(_levels(grid, group)):
                for number in range(place.shape[2]):
                    iou, (width, height) = self._best_of_shape(place[:, :, number], group)
                    best[group.rows] = np.maximum(best[group.rows], iou)
                    key = (level, width, height)
                    shapes[key] = shapes.get(key, 0) + int(np.sum(iou >= FITS))
        return Coverage(
            threshold=_threshold(self.recipe),
            labels=self.index.labels,
            best=best,
            sides=sides,
            shapes=[Shape(*key, matches) for key, matches in shapes.items()],
        )

    def suggestion(self, own: Coverage) -> tuple[Recipe, Coverage, str] | None:
        """Other sizes that fit more objects, every class counting the same; None where none is worthwhile.

        Tried are the recipe's sizes times one factor and, but for SSD's scales, clusters of the objects'
        sides by k-means in the logarithm, where a distance is an IoU of squares of one centre.

        Returns:
            The recipe with these sizes, what they cover, and how they were found.
        """
        if not len(own.labels):
            return None
        tried = [
            (recipe, self.coverage(_grid(recipe, self.grid)), how)
            for recipe, how in _candidates(self.recipe, own.sides)
        ]
        best = max(tried, key=lambda one: (round(one[1].of_classes()[0], 2), one[1].of_classes()[1]))
        return best if best[1].of_classes()[0] >= own.of_classes()[0] + WORTHWHILE else None

    def _groups(self) -> Iterator[_Group]:
        recipe, index = self.recipe, self.index
        longest = recipe.max_size if recipe.resize == "keep" else None
        resized = np.array(
            [result_size(h, w, recipe.resize, recipe.image_size, longest) for h, w in index.sizes.tolist()],
            dtype=np.int64,
        ).reshape(-1, 2)
        as_is = (resized[:, :1] == resized[:, 1:]) & (not pads_to_stride(recipe))
        padded = np.where(as_is, resized, -(-resized // STRIDE) * STRIDE)
        # only where anchors must lie inside do pictures of one padded size differ
        alike = np.concatenate([padded, resized if _must_be_inside(recipe) else padded], axis=1)
        owners = index.owners()
        scale = (resized / np.maximum(index.sizes, 1))[owners]
        boxes = index.boxes.astype(np.float64) * scale[:, [1, 0, 1, 0]]
        kinds, kind = np.unique(alike, axis=0, return_inverse=True)
        for number, (height, width, *inside) in enumerate(kinds.tolist()):
            rows = np.flatnonzero(kind.reshape(-1)[owners] == number)
            if len(rows):
                yield _Group(rows, boxes[rows], tuple(inside), (height, width), self._maps(height, width))

    def _maps(self, height: int, width: int) -> list[Size]:
        """Sizes of the feature maps, without computing what is on them."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            return map_sizes(self.detector.features(torch.zeros(1, 3, height, width)))

    def _best_of_shape(self, places: Floats, group: _Group) -> tuple[Floats, tuple[float, float]]:
        """IoU of each object with the nearest of a shape's anchors [rows, columns, 4], and its two sides."""
        x1, x2 = places[0, :, 0], places[0, :, 2]
        y1, y2 = places[:, 0, 1], places[:, 0, 3]
        shape = (round(float(x2[0] - x1[0]), 2), round(float(y2[0] - y1[0]), 2))
        if _must_be_inside(self.recipe):
            height, width = group.inside
            across, down = (x1 >= 0) & (x2 <= width), (y1 >= 0) & (y2 <= height)
            x1, x2, y1, y2 = x1[across], x2[across], y1[down], y2[down]
        if not len(x1) or not len(y1):
            return np.zeros(len(group.rows)), shape
        left, top, right, bottom = group.boxes.T
        column = _nearest((x1 + x2) / 2, (left + right) / 2)
        row = _nearest((y1 + y2) / 2, (top + bottom) / 2)
        wide = np.minimum(x2[column], right) - np.maximum(x1[column], left)
        high = np.minimum(y2[row], bottom) - np.maximum(y1[row], top)
        common = np.clip(wide, 0, None) * np.clip(high, 0, None)
        own = (x2 - x1)[column] * (y2 - y1)[row]
        union = own + (right - left) * (bottom - top) - common
        return np.divide(common, union, out=np.zeros(len(left)), where=union > 0), shape


def _threshold(recipe: Recipe) -> float:
    if isinstance(recipe, FasterRCNNRecipe):
        return recipe.rpn.fg_iou
    assert not isinstance(recipe, FCOSRecipe)
    return recipe.fg_iou


def _must_be_inside(recipe: Recipe) -> bool:
    return isinstance(recipe, FasterRCNNRecipe) and recipe.rpn.inside_anchors_only


def _levels(grid: Grid, group: _Group) -> Iterator[Floats]:
    """The anchors of each level, [rows, columns, shapes of a place, 4]."""
    boxes = grid(group.maps, group.padded).numpy().astype(np.float64)
    start = 0
    for (rows, columns), each in zip(group.maps, grid.per_place, strict=True):
        stop = start + rows * columns * each
        yield boxes[start:stop].reshape(rows, columns, each, 4)
        start = stop


def _nearest(centres: Floats, wanted: Floats) -> NDArray[np.int64]:
    """Which of some rising centres is nearest to each wanted one."""
    return np.searchsorted((centres[:-1] + centres[1:]) / 2, wanted)


def _grid(recipe: Recipe, like: Grid) -> Grid:
    """The grid of a recipe with other sizes."""
    if isinstance(recipe, SSDRecipe):
        boxes = recipe.default_boxes
        return DefaultBoxes(
            boxes.scales, boxes.aspect_ratios, steps=boxes.steps, clip_centers=boxes.clip_centers
        )
    assert isinstance(recipe, FasterRCNNRecipe | RetinaNetRecipe)
    assert isinstance(like, AnchorGrid)
    return AnchorGrid(
        recipe.anchors.sizes,
        recipe.anchors.aspect_ratios,
        strides=like.strides,
        offset=like.offset,
        rounded=recipe.anchors.round,
    )


def _candidates(recipe: Recipe, sides: Floats) -> Iterator[tuple[Recipe, str]]:
    """The recipe with other sizes, and how they were found."""
    if isinstance(recipe, SSDRecipe):
        for factor in FACTORS.tolist():
            scales = tuple(round(scale * factor, 3) for scale in recipe.default_boxes.scales)
            if scales[-2] <= 1:
                yield (
                    recipe.update({"default_boxes.scales": scales}),
                    f"all of the recipe's times {factor:.2f}",
                )
        return
    assert isinstance(recipe, FasterRCNNRecipe | RetinaNetRecipe)
    for factor in FACTORS.tolist():
        yield _sized(recipe, recipe.anchors.sizes, factor), f"all of the recipe's times {factor:.2f}"
    sides = sides[sides > 0]
    if len(sides):
        yield _sized(recipe, cluster(sides, recipe.anchors.sizes)), "k-means of the objects' sides"


def _sized(
    recipe: FasterRCNNRecipe | RetinaNetRecipe, sizes: Sequence[Sequence[float]], factor: float = 1.0
) -> Recipe:
    whole = tuple(tuple(float(max(1, round(size * factor))) for size in level) for level in sizes)
    return recipe.update({"anchors.sizes": whole})


ROUNDS = 100


def cluster(sides: NDArray[np.float64], layout: Sequence[Sequence[float]]) -> list[list[float]]:
    """Sizes in the layout of a recipe's: as many levels, and as many sizes on each.

    * One map, or the same sizes on all: a cluster is a size.
    * A pyramid: a cluster is the first size of a level, the finest level the smallest; its other sizes keep
      their proportion to the first.

    Args:
        sides: Roots of the objects' areas, in pixels, all above 0.
        layout: The recipe's `anchors.sizes`.
    """
    if all(list(level) == list(layout[0]) for level in layout):
        return [k_means(sides, len(layout[0]))] * len(layout)
    firsts = k_means(sides, len(layout))
    return [[first * size / level[0] for size in level] for first, level in zip(firsts, layout, strict=True)]


def k_means(sides: NDArray[np.float64], count: int) -> list[float]:
    """Centres, rising, of Lloyd's k-means over the logarithm, started at quantiles.

    Two squares of one centre and sides s < t have the IoU (s / t)², so that a distance of logarithms is one
    of IoUs.
    """
    values = np.sort(np.log(sides))
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(ROUNDS):
        cuts = np.searchsorted(values, (centres[:-1] + centres[1:]) / 2)
        parts = np.split(values, cuts)
        moved = np.array([part.mean() if len(part) else c for part, c in zip(parts, centres, strict=True)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    sizes: list[float] = np.exp(centres).tolist()
    return sizes
