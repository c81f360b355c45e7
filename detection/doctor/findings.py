"""The doctor on what is no fault and still makes a dataset hard: its labels, and a recipe's anchors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detection.data.index import Index
from detection.data.sources.dataset import RawDataset
from detection.doctor.labels import FEW, SAME, balance, overlapping
from detection.params.recipe import FCOSRecipe, Recipe, SSDRecipe
from detection.text import listed

if TYPE_CHECKING:
    from detection.doctor.anchor_fit import Shape

EXAMPLES = 3
ROWS = 20
"""Most classes in a table."""


def labels(raw: RawDataset, recipe: Recipe) -> list[str]:
    """Imbalance and overlaps of train's labels."""
    names, train = raw.classes, raw.splits["train"]
    spread = balance(raw.splits, len(names))
    order = np.argsort(-spread.objects, kind="stable")
    order = order[spread.objects[order] > 0]
    most, least = names[order[0]], names[order[-1]]
    lines = [
        "  labels of train",
        f"    most objects: {most} {spread.objects[order[0]]:,}, fewest: {least} "
        f"{spread.objects[order[-1]]:,}: {spread.ratio:,.0f} to 1",
    ]
    for classes, what in (
        (spread.few, f"fewer than {FEW} objects"),
        (spread.unlearnt, "no object in train, though val or test have some"),
    ):
        lines += [f"    {what}: {listed([names[label] for label in classes])}"] if classes else []

    pairs = overlapping(train, min(SAME, recipe.nms_threshold))
    owners = train.owners()

    def where(rows: NDArray[np.int64]) -> str:
        pictures = dict.fromkeys(train.ids[owners[pairs.first[rows]]].tolist())
        return listed([picture.decode() for picture in pictures], EXAMPLES)

    if len(twice := pairs.twice):
        lines.append(
            f"    labelled twice (same class, IoU {SAME} or more): {len(twice):,} pairs, in {where(twice)}"
        )
    if len(two := pairs.two_names):
        kinds = [f"{names[a]}/{names[b]} {count:,}" for (a, b), count in pairs.names().most_common()]
        lines.append(
            f"    under two names (IoU {SAME} or more): {len(two):,} pairs: {listed(kinds)}; in {where(two)}"
        )
    lost = pairs.lost_to_nms(recipe.nms_threshold)
    share = lost / len(train.labels)
    lines.append(
        f"    NMS at {recipe.nms_threshold} drops {lost:,} of {len(train.labels):,} objects ({share:.1%}) "
        f"even if each is detected exactly: they overlap one of their class"
    )
    return lines


def anchors(model: str, dataset: str, recipe: Recipe, train: Index, classes: Sequence[str]) -> list[str]:
    """Whether the anchors of a recipe fit the objects of train."""
    if isinstance(recipe, FCOSRecipe):
        return [f"  {model} has no anchors"]
    from detection.doctor.anchor_fit import FITS, Anchors

    tried = Anchors(recipe, train, len(classes))
    own = tried.coverage()
    if not len(own.labels):
        return [f"  anchors of {model}: train has no object to hold them against"]

    asks_more = own.threshold > FITS
    positives = f"{f'IoU {own.threshold}':>10}" if asks_more else ""

    def row(name: str, chosen: NDArray[np.bool_]) -> str:
        best = own.best[chosen]
        positive = f"{np.mean(best >= own.threshold):>10.1%}" if asks_more else ""
        return (
            f"    {name:<{width}}{chosen.sum():>9,}{np.median(own.sides[chosen]):>11.0f} px"
            f"{np.mean(best >= FITS):>10.1%}{positive}{np.median(best):>11.2f}"
        )

    present = np.unique(own.labels).tolist()
    fits = {label: float(np.mean(own.best[own.labels == label] >= FITS)) for label in present}
    shown = sorted(present, key=lambda label: fits[label])[:ROWS]
    width = max(len(name) for name in ["all classes", *(classes[label] for label in shown)])
    left = f", the {ROWS} that fit worst" if len(shown) < len(present) else ""
    none = int(np.sum(own.best < FITS))
    lines = [
        f"  anchors of {model} on train at {recipe.image_size} px{left}",
        f"    {'':<{width}}{'objects':>9}{'side':>14}{f'IoU {FITS}':>10}{positives}{'best IoU':>11}",
        *(row(classes[label], own.labels == label) for label in shown),
        row("all classes", own.labels >= 0),
        f"    (shares with an anchor at that IoU, {own.threshold} makes a positive; else medians)",
        f"    {none:,} objects fit no anchor and can only claim a bad one: without that a recall of "
        f"{own.share(FITS):.1%} is the ceiling",
        *_idle(own.shapes),
    ]
    if (better := tried.suggestion(own)) is None:
        return [*lines, "    no other sizes fit noticeably more"]
    other, coverage, how = better
    key, value = _sizes(other)
    worst = min(present, key=lambda label: float(np.mean(coverage.best[coverage.labels == label] >= FITS)))
    worst_share = np.mean(coverage.best[coverage.labels == worst] >= FITS)
    return [
        *lines,
        f"    suggested: models.{model}.overrides.{dataset}.{key}: {value}",
        "      in params.yaml, or as -S, with a + before it where params.yaml has no such line yet\n"
        f"      ({how}): {coverage.share(FITS):.1%} fit, of the worst, {classes[worst]}, {worst_share:.1%}",
    ]


def _sizes(recipe: Recipe) -> tuple[str, str]:
    if isinstance(recipe, SSDRecipe):
        return "default_boxes.scales", str(list(recipe.default_boxes.scales))
    assert not isinstance(recipe, FCOSRecipe)
    levels = ("[" + ", ".join(f"{size:g}" for size in level) + "]" for level in recipe.anchors.sizes)
    return "anchors.sizes", "[" + ", ".join(levels) + "]"


def _idle(shapes: "Sequence[Shape]") -> list[str]:
    """Anchors that fit no object, level by level."""
    idle = [shape for shape in shapes if not shape.matches]
    if not idle:
        return ["    every shape of anchor fits some object"]
    parts = []
    for level in sorted({shape.level for shape in idle}):
        mine = [f"{shape.width:.0f}x{shape.height:.0f}" for shape in idle if shape.level == level]
        every = "all " if len(mine) == sum(shape.level == level for shape in shapes) else ""
        parts.append(f"level {level}: {every}{len(mine)} ({listed(mine, EXAMPLES)})")
    return [f"    {len(idle)} of {len(shapes)} shapes fit no object: {'; '.join(parts)}"]
