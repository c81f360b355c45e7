"""Precision, recall and F1 over the score, and whether scores mean what they say."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import BLUE, GREEN, INK, RED, SKY, SOFT, chart
from detection.report.readers import read_json, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = {"precision": BLUE, "recall": RED, "f1": GREEN}


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/score_sweep.csv`, all classes in one pot; None where nothing has been scored."""
    table = read_table(reports / "evaluation/score_sweep.csv")
    if table is None or table["f1"].isna().all():
        return None
    table = table.iloc[: table["score"].nunique()]  # the pot stands first, and a class may be called "all"
    figure, axes = chart(6.0, 3.6)
    for name, colour in DRAWN.items():
        axes.plot(table["score"], table[name], color=colour, label=name.replace("f1", "F1"))
    best = read_json(reports / "evaluation/analysis.json").get("threshold", {})
    if best.get("score") is not None:
        axes.axvline(best["score"], color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.plot(best["score"], best["f1"], "o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
        axes.set_title(f"best F1 {best['f1']:.3f} at score {best['score']:.3f}", fontsize=10, loc="left")
    axes.set(ylim=(0, 1.02), xlabel="score threshold", ylabel="at IoU 0.5")
    axes.set_xlim(table["score"].iloc[0], table["score"].iloc[-1])
    axes.legend(loc="lower center", ncols=3)
    return figure


def draw_calibration(reports: Path) -> "Figure | None":
    """Draw `evaluation/calibration.csv`: how often detections of a score are right; None without any."""
    table = read_table(reports / "evaluation/calibration.csv")
    if table is None:
        return None
    table = table[table["detections"] > 0]
    if table.empty:
        return None
    figure, axes = chart(6.0, 3.6)
    axes.bar(table["score_from"] + 0.05, table["precision"], width=0.09, color=SKY, alpha=0.5)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    axes.plot(table["mean_score"], table["precision"], "o-", color=BLUE, markersize=4, label="right")
    for place, height, count in zip(
        table["score_from"] + 0.05, table["precision"], table["detections"], strict=True
    ):
        axes.text(place, min(height + 0.03, 0.97), f"{count:,}", ha="center", fontsize=7, color=SOFT)
    axes.set(xlim=(0, 1), ylim=(0, 1.04), xlabel="score", ylabel="share of right detections")
    error = read_json(reports / "evaluation/analysis.json").get("calibration_error")
    if error is not None:
        axes.set_title(f"calibration error {error:.3f}", fontsize=10, loc="left")
    return figure
