"""Report of `detection doctor`, section by section, as lines of text."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.data.sources.checks import PROBLEM_TYPES
from detection.data.sources.dataset import RawDataset
from detection.doctor.label_stats import (
    RARE_OBJECTS,
    SAME_OBJECT_IOU,
    ap50_margin,
    balance,
    overlapping_pairs,
    reliability_warnings,
)
from detection.params.recipe import FCOSRecipe, Recipe, SSDRecipe
from detection.text import listed

if TYPE_CHECKING:
    from detection.doctor.anchor_fit import AnchorRecipe, AnchorShape

MAX_PROBLEMS = 5
"""Problems shown per type."""
MAX_EXAMPLES = 3
MAX_CLASSES = 20
"""Classes listed, and rows of the anchor table."""


def splits(raw: RawDataset) -> list[str]:
    """Table of images, objects and classes per split, without dropped ones, and the class names."""
    rows: list[tuple[str, ...]] = [("", "images", "objects", "without objects", "classes", "difficult", "crowd")]
    for split, index in raw.splits.items():
        empty = int((np.diff(index.offsets) == 0).sum())
        counts = (len(index), len(index.boxes), empty, len(np.unique(index.labels)))
        flags = (int(index.difficult.sum()), int(index.crowd.sum()))
        rows.append((split, *(f"{count:,}" for count in (*counts, *flags))))
    lines = ["  " + f"{row[0]:<6}" + "".join(f"{cell:>17}" for cell in row[1:]) for row in rows]
    return [*lines, "", f"  {len(raw.classes)} classes: {listed(raw.classes, MAX_CLASSES)}"]


def problems(raw: RawDataset) -> list[str]:
    """Per problem type its count, the action of `prepare` and the first examples."""
    counts = raw.problems.counts()
    lines = [] if counts else ["  no problems"]
    lines += [f"  {raw.orientation.line}"] if raw.orientation.line else []
    for name, count in counts.items():
        lines.append(f"  {count:>6,}  {PROBLEM_TYPES[name]}   [{name}: {raw.problems.action(name)}]")
        lines += [f"            {problem}" for problem in raw.problems.of_type(name)[:MAX_PROBLEMS]]
        lines += [f"            … and {count - MAX_PROBLEMS:,} more"] if count > MAX_PROBLEMS else []
    return lines


def reliability(raw: RawDataset) -> list[str]:
    """Margin of AP50 on val and test, and warnings."""
    margins = {split: ap50_margin(raw.splits[split], len(raw.classes)) for split in ("val", "test")}
    parts = [f"± {margin:.2f} on {split}" for split, margin in margins.items() if not math.isnan(margin)]
    lines = [f"    AP50 by chance: {', '.join(parts)} (95 % interval)"] if parts else []
    warnings = reliability_warnings(raw.name, raw.entry, raw.splits, raw.classes)
    return ["  reliability of the metrics", *lines, *(f"    {warning}" for warning in warnings)]


def labels(raw: RawDataset, recipe: Recipe) -> list[str]:
    """Class balance of train, duplicate and conflicting labels, objects that NMS drops."""
    names, train = raw.classes, raw.splits["train"]
    stats = balance(raw.splits, len(names))
    order = np.argsort(-stats.objects, kind="stable")
    order = order[stats.objects[order] > 0]
    most, fewest = (f"{names[label]} {stats.objects[label]:,}" for label in (order[0], order[-1]))
    lines = ["  labels of train", f"    most objects: {most}, fewest: {fewest}, ratio {stats.ratio:,.0f}"]
    for classes, description in (
        (stats.rare, f"fewer than {RARE_OBJECTS} objects"),
        (stats.untrained, "no object in train, but in val or test"),
    ):
        lines += [f"    {description}: {listed([names[label] for label in classes])}"] if classes else []

    pairs = overlapping_pairs(train, min(SAME_OBJECT_IOU, recipe.nms_threshold))
    images = train.image_rows()

    for same_class, description in ((True, "duplicates"), (False, "two classes")):
        same = pairs.same_object(same_class)
        counts = Counter(f"{names[a]}/{names[b]}" for a, b in np.sort(same.labels, axis=1).tolist())
        ids = dict.fromkeys(train.ids[images[same.first]].tolist())
        if counts:
            pair_counts = listed([f"{pair} {count:,}" for pair, count in counts.most_common()])
            where = listed([one.decode() for one in ids], MAX_EXAMPLES)
            lines.append(
                f"    {description} (IoU ≥ {SAME_OBJECT_IOU}): {len(same.iou):,} pairs"
                f"{'' if same_class else f': {pair_counts}'}; in {where}"
            )
    lost = pairs.lost_to_nms(recipe.nms_threshold)
    lines.append(
        f"    NMS at {recipe.nms_threshold} drops {lost:,} of {len(train.labels):,} objects "
        f"({lost / len(train.labels):.1%}) of a perfect detector: they overlap one of their class"
    )
    return lines


def anchors(model: str, dataset: str, recipe: Recipe, train: Index, classes: Sequence[str]) -> list[str]:
    """Fit of a recipe's anchors to the objects of train, and suggested sizes."""
    if isinstance(recipe, FCOSRecipe):
        return [f"  {model} has no anchors"]
    from detection.doctor.anchor_fit import FIT_IOU, AnchorFit

    fit = AnchorFit(recipe, train, len(classes))
    own = fit.coverage()
    if not len(own.labels):
        return [f"  anchors of {model}: no object in train"]
    stricter = own.positive_iou > FIT_IOU
    positives = f"{f'IoU {own.positive_iou}':>10}" if stricter else ""

    def row(name: str, mask: NDArray[np.bool_]) -> str:
        best = own.best_iou[mask]
        positive = f"{np.mean(best >= own.positive_iou):>10.1%}" if stricter else ""
        return (
            f"    {name:<{width}}{mask.sum():>9,}{np.median(own.sides[mask]):>11.0f} px"
            f"{np.mean(best >= FIT_IOU):>10.1%}{positive}{np.median(best):>11.2f}"
        )

    def fitted(best_iou: NDArray[np.float64], label: int) -> float:
        return float(np.mean(best_iou[own.labels == label] >= FIT_IOU))

    unfit = int(np.sum(own.best_iou < FIT_IOU))
    present = np.unique(own.labels).tolist()
    shown = sorted(present, key=lambda label: fitted(own.best_iou, label))[:MAX_CLASSES]
    width = max(len(name) for name in ["all classes", *(classes[label] for label in shown)])
    left = f", the {MAX_CLASSES} worst classes" if len(shown) < len(present) else ""
    lines = [
        f"  anchors of {model} on train at {recipe.image_size} px{left}",
        f"    {'':<{width}}{'objects':>9}{'side':>14}{f'IoU {FIT_IOU}':>10}{positives}{'best IoU':>11}",
        *(row(classes[label], own.labels == label) for label in shown),
        row("all classes", own.labels >= 0),
        f"    (fractions have an anchor of that IoU, positives from {own.positive_iou}; others are medians)",
        f"    {unfit:,} {'object fits' if unfit == 1 else 'objects fit'} no anchor and get low-quality matches; "
        f"without these, recall is at most {own.fraction(FIT_IOU):.1%}",
        _unused(own.shapes),
    ]
    if (better := fit.suggestion(own)) is None:
        return [*lines, "    no other sizes fit noticeably more objects"]
    other, coverage, method = better
    key, value = _sizes(other)
    worst = min(present, key=lambda label: fitted(coverage.best_iou, label))
    return [
        *lines,
        f"    suggested: models.{model}.overrides.{dataset}.{key}: {value}",
        "      in params.yaml, or with -S, prefixed with + if params.yaml has no such key yet",
        f"      ({method}): {coverage.fraction(FIT_IOU):.1%} of the objects fit, of the worst class, "
        f"{classes[worst]}, {fitted(coverage.best_iou, worst):.1%}",
    ]


def _sizes(recipe: "AnchorRecipe") -> tuple[str, str]:
    """Key and value of a recipe's anchor sizes, as in params.yaml."""
    if isinstance(recipe, SSDRecipe):
        return "default_boxes.scales", str(list(recipe.default_boxes.scales))
    levels = ("[" + ", ".join(f"{size:g}" for size in level) + "]" for level in recipe.anchors.sizes)
    return "anchors.sizes", "[" + ", ".join(levels) + "]"


def _unused(shapes: "Sequence[AnchorShape]") -> str:
    """Anchor shapes that fit no object, per level."""
    unused = [shape for shape in shapes if not shape.matches]
    if not unused:
        return "    every anchor shape fits some object"
    parts = []
    for level in sorted({shape.level for shape in unused}):
        sizes = [f"{shape.width:.0f}x{shape.height:.0f}" for shape in unused if shape.level == level]
        every = "all " if len(sizes) == sum(shape.level == level for shape in shapes) else ""
        parts.append(f"level {level}: {every}{len(sizes)} ({listed(sizes, MAX_EXAMPLES)})")
    return f"    {len(unused)} of {len(shapes)} anchor shapes fit no object: {'; '.join(parts)}"
