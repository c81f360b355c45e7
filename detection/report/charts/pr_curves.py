"""Precision over recall at IoU 0.5, a line a class and their mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.report.charts.style import INK, LINES, chart
from detection.report.images.boxes_on_image import class_colour
from detection.report.readers import read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MEAN = "all"
MOST_LINES, EXTREMES = 20, 5


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/pr_curves.csv`: all classes, or of many the best and worst few; None without any."""
    table = read_table(reports / "evaluation/pr_curves.csv")
    if table is None or table["precision"].isna().all():
        return None
    # The mean stands first, and a class may be called the same: go by place, 101 rows each.
    points = int(table["recall"].nunique())
    blocks = [table.iloc[start : start + points] for start in range(0, len(table), points)]
    mean, curves = blocks[0], list(enumerate(blocks[1:]))
    known = [(label, curve) for label, curve in curves if curve["precision"].notna().all()]
    known.sort(key=lambda pair: -pair[1]["precision"].mean())
    shown = known if len(known) <= MOST_LINES else known[:EXTREMES] + known[-EXTREMES:]
    figure, axes = chart(9.0, max(4.2, 1.0 + 0.21 * len(shown)))
    for place, (label, curve) in enumerate(shown):
        name = f"{curve['class'].iloc[0]}  {_ap50(curve)}"
        axes.plot(*_reached(curve), linewidth=1.4, label=name, **_look(label, place, len(shown) < len(known)))
    if len(known) > 1:
        axes.plot(mean["recall"], mean["precision"], color=INK, linewidth=2.6, label=f"mean  {_ap50(mean)}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    hidden = len(known) - len(shown)
    title = f"AP50: best and worst {EXTREMES},\n{hidden} between not drawn" if hidden else "AP50"
    axes.legend(title=title, alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    return figure


def _look(label: int, place: int, extremes: bool) -> dict[str, Any]:
    """A class's own colour; of many classes the drawn few get colours that differ, and the worst dashes."""
    if not extremes:
        return {"color": class_colour(label)}
    return {"color": LINES[place % EXTREMES], "linestyle": "-" if place < EXTREMES else (0, (4, 2))}


def _reached(curve: "pd.DataFrame") -> "tuple[pd.Series[float], pd.Series[float]]":
    """The curve up to the first recall that is not reached, where precision falls to zero."""
    zero = curve["precision"].to_numpy() <= 0
    end = int(zero.argmax()) + 1 if zero.any() else len(curve)
    return curve["recall"].iloc[:end], curve["precision"].iloc[:end]


def _ap50(curve: "pd.DataFrame") -> str:
    return f"{curve['precision'].mean():.3f}"
