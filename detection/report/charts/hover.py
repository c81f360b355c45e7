"""The values behind a chart's lines, so that the page can show them under the pointer."""

from typing import TYPE_CHECKING, Any

import numpy as np

from detection.report.charts.style import THEME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST_POINTS = 400
"""Of a line; longer ones are thinned evenly."""
INCH = 72
"""Units of matplotlib's SVG in an inch."""


def values(figure: "Figure") -> list[dict[str, Any]]:
    """What the page needs for each pair of axes with named lines.

    Args:
        figure: One that has been drawn: only then its layout is known.

    Returns:
        `box`: left, top, width and height of the axes in the SVG's units; `x` and `y`: the limits of the data
        (linear); `over`: name of the x axis; `lines`: `name`, `colour` as CSS has it, `x`, `y`.
    """
    return [_axes(figure, axes) for axes in figure.axes if _named(axes)]


def _axes(figure: "Figure", axes: "Axes") -> dict[str, Any]:
    width, height = (INCH * side for side in figure.get_size_inches())
    place = axes.get_position()
    box = place.x0 * width, (1 - place.y1) * height, place.width * width, place.height * height
    return {
        "box": [round(float(side), 2) for side in box],
        "x": [float(limit) for limit in axes.get_xlim()],
        "y": [float(limit) for limit in axes.get_ylim()],
        "over": axes.get_xlabel(),
        "lines": [_line(line) for line in _named(axes)],
    }


def _named(axes: "Axes") -> "list[Line2D]":
    """Lines of the legend; matplotlib hides names that begin with an underscore from it."""
    return [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]


def _line(line: "Line2D") -> dict[str, Any]:
    x, y = (np.asarray(axis, dtype=np.float64) for axis in line.get_data())
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
    kept = kept[np.isfinite(y[kept])]
    return {
        "name": str(line.get_label()).split("  ")[0],  # the legend's value of the end left out
        "colour": THEME.get(str(line.get_color()), str(line.get_color())),
        "x": [float(f"{value:.6g}") for value in x[kept]],
        "y": [float(f"{value:.4g}") for value in y[kept]],
    }
