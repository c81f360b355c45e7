"""Recall over size, aspect ratio, crowding and truncation."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from detection.report.charts.style import BLUE, SKY, SOFT
from detection.report.readers import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "size": "size: √area in pixels",
    "aspect ratio": "width : height",
    "crowding": "crowding: IoU with the next object",
    "truncation": "sides of the picture touched",
}


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/recall.csv`, a panel a property; None where nothing has been scored."""
    from matplotlib.figure import Figure

    table = read_table(reports / "evaluation/recall.csv")
    if table is None:
        return None
    kinds = [name for name in TITLES if name in set(table["attribute"])]
    figure = Figure(figsize=(9.0, 5.6 if len(kinds) > 2 else 3.0), layout="constrained")
    grid = figure.subplots(-(-len(kinds) // 2), 2, squeeze=False).ravel()
    for axes, name in zip(grid, kinds, strict=False):
        _panel(axes, table[table["attribute"] == name], name)
    for axes in grid[len(kinds) :]:
        axes.set_visible(False)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _panel(axes: "Axes", part: pd.DataFrame, name: str) -> None:
    places = range(len(part))
    axes.bar(places, part["recall"], width=0.7, color=SKY, alpha=0.45, label="found with any score")
    axes.bar(places, part["recall_above_threshold"], width=0.7, color=BLUE, label="found above the threshold")
    for place, height, count in zip(places, part["recall"], part["objects"], strict=True):
        axes.text(place, height + 0.02, f"{count:,}", ha="center", fontsize=7.5, color=SOFT)
    names = [bin_name(name, low, high) for low, high in zip(part["low"], part["high"], strict=True)]
    axes.set_xticks(places, names, fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 1.12), yticks=[0, 0.25, 0.5, 0.75, 1], ylabel="recall")
    axes.set_title(TITLES[name], fontsize=10, loc="left")


def bin_name(over: str, low: float, high: float) -> str:
    """A bin as people say it."""
    if over == "truncation":
        return f"{low:.0f} or more" if pd.isna(high) else f"{low:.0f}"
    if over == "crowding" and high < 1e-3:
        return "none"
    write = _ratio if over == "aspect ratio" else "{:g}".format
    if pd.isna(high):
        return f"≥ {write(low)}"
    return f"< {write(high)}" if low < 1e-3 else f"{write(low)}–{write(high)}"


def in_words(over: str, low: float, high: float) -> str:
    """The objects of a bin, in a sentence."""
    name = bin_name(over, low, high)
    if over == "truncation":
        return (
            "objects away from the border" if low == 0 else f"objects cut off at {name} sides of the picture"
        )
    if over == "crowding":
        return (
            "objects that touch no other" if name == "none" else f"objects that overlap another by IoU {name}"
        )
    return f"objects of {name} px" if over == "size" else f"objects of {name} (width to height)"


def _ratio(value: float) -> str:
    """`1:4`, `2:3`, `2:1`."""
    fraction = Fraction(value).limit_denominator(9)
    return f"{fraction.numerator}:{fraction.denominator}"
