"""How the backbone's pretraining went."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import BLUE, RED, whole_numbers
from detection.report.readers import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(reports: Path) -> "Figure | None":
    """Draw `pretrain/curves.csv`; None where the backbone was not trained here."""
    from matplotlib.figure import Figure

    table = read_table(reports / "pretrain/curves.csv")
    if table is None:
        return None
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    marker = "o" if len(table) <= 40 else ""
    left.plot(table["epoch"], table["loss"], color=BLUE, marker=marker, markersize=3.5, label="cross-entropy")
    left.set_ylabel("cross-entropy on train")
    left.set_ylim(bottom=0)
    names = {"accuracy": ("train", BLUE), "val_accuracy": ("val", RED)}
    for name, (label, colour) in names.items():
        if name in table and table[name].notna().any():
            last = table[name].dropna().iloc[-1]
            right.plot(
                table["epoch"],
                table[name],
                color=colour,
                label=f"{label}  {last:.3f}",
                marker=marker,
                markersize=3.5,
            )
    right.set_ylabel("accuracy")
    right.set_ylim(0, 1.02)
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        whole_numbers(axes)
    return figure
