"""Average precision of every class, best on top, with the number of objects it rests on."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import BLUE, INK, SKY, SOFT
from detection.report.readers import read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN = 25
"""Most classes that stand in one column; more stand in two, closer together."""


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/per_class.csv`; None where no class has objects."""
    from matplotlib.figure import Figure

    table = read_table(reports / "evaluation/per_class.csv")
    if table is None or table["AP"].isna().all():
        return None
    table = table.dropna(subset=["AP"]).sort_values("AP", ascending=False, kind="stable")
    columns = 1 if len(table) <= ONE_COLUMN else 2
    rows = -(-len(table) // columns)
    height = 1.1 + (0.3 if columns == 1 else 0.22) * max(rows, 3)
    figure = Figure(figsize=(9.0, height), layout="constrained")
    for i, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _bars(axes, table.iloc[i * rows : (i + 1) * rows], rows, size=9 if columns == 1 else 8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _bars(axes: "Axes", table: "pd.DataFrame", rows: int, size: int) -> None:
    """One column of classes, best on top."""
    places = range(rows - 1, rows - 1 - len(table), -1)
    axes.barh(places, table["AP50"], height=0.66, color=SKY, alpha=0.45, label="AP50")
    axes.barh(places, table["AP"], height=0.66, color=BLUE, label="AP (IoU 0.5 to 0.95)")
    for place, ap, ap50 in zip(places, table["AP"], table["AP50"], strict=True):
        axes.text(ap50 + 0.01, place, f"{ap50:.3f}", va="center", fontsize=size, color=SOFT)
        if ap > 0.15:  # else it does not fit into its bar
            axes.text(ap - 0.01, place, f"{ap:.3f}", va="center", ha="right", fontsize=size, color="white")
    names = [f"{name}  ({count:,})" for name, count in zip(table["class"], table["objects"], strict=True)]
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=size + 1)
    axes.set(xlim=(0, 1.1), ylim=(-0.6, rows - 0.4))
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("on test; objects in brackets")
