"""What each kind of error costs, after TIDE."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import BLUE, INK, SOFT, chart
from detection.report.readers import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMS = ("false_positives", "false_negatives")
"""Rows that hold several kinds."""


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/errors.csv`; None where nothing has been scored."""
    table = read_table(reports / "evaluation/errors.csv")
    if table is None or table["dAP50"].isna().all():
        return None
    table = table[~table["error_type"].isin(SUMS)].sort_values("dAP50", kind="stable")
    figure, axes = chart(9.0, 2.9)
    places = range(len(table))
    axes.barh(places, table["dAP50"].clip(lower=0), height=0.62, color=BLUE)
    for place, gain, count in zip(places, table["dAP50"], table["count"], strict=True):
        text = f"  +{max(gain, 0):.3f}   ({count:,})"
        axes.text(max(gain, 0), place, text, va="center", fontsize=9, color=SOFT)
    axes.set_yticks(places, table["error_type"])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(table["dAP50"].max() * 1.22, 0.01))
    axes.set_xlabel("AP50 gained if these errors alone were mended; their number in brackets")
    return figure
