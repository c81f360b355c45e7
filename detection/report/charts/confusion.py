"""The confusion matrix, with its thresholds printed on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detection.evaluation.analysis.tables import BACKGROUND_ROW, MISSED_COLUMN
from detection.report.charts.style import INK, chart
from detection.report.readers import read_json, read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_NUMBERS, MOST_NAMES = 25, 60
"""Classes up to which the cells hold numbers, and the axes names."""


def matrix(reports: Path) -> "pd.DataFrame | None":
    """Counts, a row for what there is and a column for what was said, in label order; None without any."""
    table = read_table(reports / "evaluation/confusion.csv")
    classes = read_table(reports / "evaluation/per_class.csv")
    if table is None or classes is None:
        return None
    names = classes["class"].astype(str).tolist()
    pivot = table.pivot_table(
        index="actual", columns="predicted", values="count", aggfunc="sum", fill_value=0
    )
    rows, columns = [*names, BACKGROUND_ROW], [*names, MISSED_COLUMN]
    return pivot.reindex(index=rows, columns=columns, fill_value=0).astype(int)


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/confusion.csv`: colours are shares of a row, numbers are counts."""
    counts = matrix(reports)
    if counts is None:
        return None
    size = len(counts)
    figure, axes = chart(min(9.0, 2.4 + 0.5 * size), min(9.0, 1.3 + 0.4 * size))
    values = counts.to_numpy()
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    small = size <= MOST_NUMBERS + 1
    edges: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.6} if small else {"rasterized": True}
    axes.pcolormesh(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1.15, **edges)
    axes.invert_yaxis()
    if small:
        for row, column in zip(*np.nonzero(values), strict=True):
            ink = (
                "white" if shares[row, column] > 0.45 else "#1f2328"
            )  # on its cell, whatever the page's theme
            place = column + 0.5, row + 0.5
            axes.text(*place, f"{values[row, column]:,}", ha="center", va="center", color=ink, fontsize=9)
    ticks = np.arange(size) + 0.5
    if size <= MOST_NAMES + 1:
        axes.set_xticks(ticks, counts.columns, rotation=90 if size > 6 else 0, fontsize=9 if size < 25 else 6)
        axes.set_yticks(ticks, counts.index, fontsize=9 if size < 25 else 6)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.set(xlabel="said", ylabel="there is")
    axes.set_title(thresholds(reports), fontsize=10, loc="left")
    return figure


def thresholds(reports: Path) -> str:
    """The thresholds that the matrix stands for, as one line."""
    analysis = read_json(reports / "evaluation/analysis.json")
    score, iou = analysis.get("threshold", {}).get("score"), analysis.get("iou", {}).get("foreground")
    return f"score ≥ {score:.3f} (best F1), IoU ≥ {iou:g}" if score is not None else "no detections"


def mistakes(reports: Path, count: int = 8) -> list[tuple[str, str, int]]:
    """What is taken for what most often: what there is, what was said, how often."""
    table = read_table(reports / "evaluation/confusion.csv")
    if table is None:
        return []
    outside = (BACKGROUND_ROW, MISSED_COLUMN)
    wrong = table[
        (table["actual"] != table["predicted"])
        & ~table["actual"].isin(outside)
        & ~table["predicted"].isin(outside)
    ]
    wrong = wrong.sort_values("count", ascending=False, kind="stable").head(count)
    return [(str(r["actual"]), str(r["predicted"]), int(r["count"])) for r in wrong.to_dict("records")]
