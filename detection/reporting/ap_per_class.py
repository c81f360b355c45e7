"""Average precision of every class, best on top, with the number of objects it rests on."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.reporting.files import read_table
from detection.reporting.style import BLUE, INK, SKY, SOFT, chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/per_class.csv`; None where no class has objects."""
    table = read_table(reports / "evaluation/per_class.csv")
    if table is None or table["AP"].isna().all():
        return None
    table = table.dropna(subset=["AP"]).sort_values("AP", kind="stable")
    figure, axes = chart(9.0, 1.1 + 0.3 * max(len(table), 3))
    places = range(len(table))
    axes.barh(places, table["AP50"], height=0.66, color=SKY, alpha=0.45, label="AP50")
    axes.barh(places, table["AP"], height=0.66, color=BLUE, label="AP (IoU 0.5 to 0.95)")
    for place, (ap, ap50) in enumerate(zip(table["AP"], table["AP50"], strict=True)):
        axes.text(max(ap, ap50) + 0.008, place, f"{ap50:.3f}", va="center", fontsize=9, color=SOFT)
        if ap > 0.07:  # else it does not fit into its bar
            axes.text(ap - 0.008, place, f"{ap:.3f}", va="center", ha="right", fontsize=9, color="white")
    names = [f"{name}  ({count:,})" for name, count in zip(table["class"], table["objects"], strict=True)]
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set(xlim=(0, 1.06), ylim=(-0.6, len(table) - 0.4))
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("on test; objects in brackets")
    axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    return figure
