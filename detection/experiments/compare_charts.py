"""Curves of several experiments over each other, and what each class gained."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detection.evaluation.analysis.bootstrap import Difference
from detection.experiments.compare_content import ExperimentData
from detection.experiments.verdict import Comparison, sign
from detection.report.charts.style import (
    BLUE,
    INK,
    LINES,
    RED,
    SOFT,
    chart,
    house_style,
    to_svg,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING = 0.95
"""Weight of the past in the moving average of losses."""
ONE_COLUMN = 25
"""Most classes that stand in one column."""
VALIDATED = ("AP", "AP50")


def draw(
    names: Sequence[str], contents: Sequence[ExperimentData], verdicts: Sequence[Comparison]
) -> dict[str, str]:
    """Draw all charts there is data for; SVG by name."""
    with house_style():
        figures = {
            "losses": losses(names, contents),
            "validation": validation(names, contents),
            **{f"gain_{i}": gains(one, contents[0]) for i, one in enumerate(verdicts) if not one.identical},
        }
        return {name: to_svg(figure, name) for name, figure in figures.items() if figure is not None}


def losses(names: Sequence[str], contents: Sequence[ExperimentData]) -> "Figure | None":
    """Total training loss over epochs: every step faint, the moving average on top."""
    drawn = [(i, one.losses) for i, one in enumerate(contents) if one.losses is not None]
    if not drawn:
        return None
    figure, axes = chart()
    tops = []
    for i, table in drawn:
        colour = LINES[i % len(LINES)]
        smooth = table["loss"].ewm(alpha=1 - SMOOTHING).mean()
        axes.plot(table["epoch"], table["loss"], color=colour, linewidth=0.5, alpha=0.25)
        axes.plot(table["epoch"], smooth, color=colour, label=f"{names[i]}  {smooth.iloc[-1]:.3f}")
        tops.append(float(table["loss"].quantile(0.99)))
    axes.set_ylim(0, max(tops) * 1.1 or 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.legend(title="moving average, at the end", alignment="left", loc="upper right")
    return figure


def validation(names: Sequence[str], contents: Sequence[ExperimentData]) -> "Figure | None":
    """AP and AP50 on val over epochs."""
    tables = [(i, one.validation) for i, one in enumerate(contents)]
    drawn = [(i, table) for i, table in tables if table is not None and VALIDATED[0] in table]
    if not drawn:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(VALIDATED)), VALIDATED, strict=True):
        for i, table in drawn:
            if metric in table:
                marker = "o" if len(table) <= 40 else ""
                colour = LINES[i % len(LINES)]
                axes.plot(
                    table["epoch"], table[metric], color=colour, marker=marker, markersize=3.5, label=names[i]
                )
        axes.set_ylim(bottom=0)
        whole_numbers(axes)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{metric} on val")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def gains(verdict: Comparison, first: ExperimentData) -> "Figure | None":
    """What each class gained in AP50, with its interval; the greatest gain on top."""
    from matplotlib.figure import Figure

    classes = zip(first.prepared.classes, verdict.spread.per_class["AP50"], strict=True)
    known = [(name, one) for name, one in classes if not math.isnan(one.value)]
    if not known:
        return None
    known.sort(key=lambda pair: -pair[1].value)
    columns = 1 if len(known) <= ONE_COLUMN else 2
    rows = -(-len(known) // columns)
    height = 1.0 + (0.3 if columns == 1 else 0.22) * max(rows, 3)
    figure = Figure(figsize=(9.0, height), layout="constrained")
    reach = max(max(abs(one.low), abs(one.high), abs(one.value)) for _, one in known) * 1.08 or 0.1
    for i, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _column(axes, known[i * rows : (i + 1) * rows], rows, reach)
    return figure


def _column(axes: "Axes", known: list[tuple[str, Difference]], rows: int, reach: float) -> None:
    for place, (_, one) in zip(range(rows - 1, -1, -1), known, strict=False):
        colour = {1: BLUE, -1: RED, 0: SOFT}[sign(one)]
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.6)
        axes.plot(one.value, place, marker="o", markersize=5, color=colour)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(rows - 1, rows - 1 - len(known), -1), [name for name, _ in known])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set(xlim=(-reach, reach), ylim=(-0.6, rows - 0.4))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("difference of AP50")
