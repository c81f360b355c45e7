"""Average precision on `val` over epochs, with the checkpoint that was chosen."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import BLUE, GREEN, INK, RED, SOFT, chart, whole_numbers
from detection.report.readers import read_json, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = {"AP": BLUE, "AP50": RED, "AP75": GREEN}


def draw(reports: Path) -> "Figure | None":
    """Draw `train/metrics.csv`; None where there is no val split."""
    table = read_table(reports / "train/metrics.csv")
    if table is None:
        return None
    summary = read_json(reports / "train/metrics.json")
    best, monitor = summary.get("best_epoch"), monitored(summary)
    names = [name for name in dict.fromkeys([*DRAWN, monitor or "AP"]) if name in table.columns]
    if not names:
        return None
    figure, axes = chart(6.0, 3.4)
    marker = "o" if len(table) <= 40 else ""
    for name in names:
        colour = DRAWN.get(name, SOFT)
        axes.plot(table["epoch"], table[name], color=colour, marker=marker, markersize=3.5, label=name)
    chosen = table[table["epoch"] == best]
    if best is not None and len(chosen) and monitor in table.columns:
        value = float(chosen[monitor].iloc[0])
        axes.axvline(best, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.plot(best, value, marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK)
        axes.set_title(f"kept: epoch {best}, {monitor} {value:.3f}", fontsize=10, loc="left")
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel("on val")
    axes.legend(loc="lower right")
    return figure


def monitored(summary: dict[str, object]) -> str | None:
    """Name of the metric that chose the checkpoint, from `train/metrics.json`."""
    known = ("AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area")
    return next((name for name in summary if name in known), None)
