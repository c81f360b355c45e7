"""The learning rate over steps."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.loss_curves import epoch_axis
from detection.report.charts.style import BLUE, chart
from detection.report.readers import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(reports: Path) -> "Figure | None":
    """Draw `train/losses.csv`'s learning rate; None where nothing was trained."""
    table = read_table(reports / "train/losses.csv")
    if table is None:
        return None
    figure, axes = chart(6.0, 3.4)
    axes.plot(table["step"], table["lr"], color=BLUE, label="learning rate")
    axes.set_ylim(0, table["lr"].max() * 1.08 or 1)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    epoch_axis(axes, table)
    return figure
