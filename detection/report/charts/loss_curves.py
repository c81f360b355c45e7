"""Training losses over steps: every step faint, the moving average on top."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import INK, LINES, SOFT, chart
from detection.report.readers import read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_LOSSES = ("step", "epoch", "time", "lr")


def draw(reports: Path, smoothing: float = 0.9) -> "Figure | None":
    """Draw `train/losses.csv`; None where nothing was trained.

    Args:
        reports: The folder of all reports.
        smoothing: Weight of the past in the moving average, 0 to 1.
    """
    table = read_table(reports / "train/losses.csv")
    if table is None:
        return None
    figure, axes = chart()
    names = [name for name in table.columns if name not in NOT_LOSSES]
    terms = [name for name in names if name != "loss"]
    colours = {"loss": INK} | {name: LINES[i % len(LINES)] for i, name in enumerate(terms)}
    for name in ["loss", *terms] if len(terms) != 1 else ["loss"]:
        smooth = table[name].ewm(alpha=max(1 - smoothing, 1e-3)).mean()
        if name == "loss":
            axes.plot(table["step"], table[name], color=SOFT, linewidth=0.6, alpha=0.35)
        label = "total" if name == "loss" else name.replace("_", " ")
        axes.plot(table["step"], smooth, color=colours[name], label=f"{label}  {smooth.iloc[-1]:.3f}")
    top = float(table["loss"].quantile(0.995)) * 1.1  # a few wild first steps must not flatten the rest
    axes.set_ylim(0, top if top > 0 else 1)
    axes.set_xlim(0, table["step"].iloc[-1])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(title="moving average, at the end", alignment="left", loc="upper right")
    epoch_axis(axes, table)
    return figure


def epoch_axis(axes: "Axes", table: "pd.DataFrame") -> None:
    """Put epochs on a second axis above one of steps; the table has both as columns."""
    per_epoch = table["step"].iloc[-1] / max(table["epoch"].iloc[-1], 1e-9)
    above = axes.secondary_xaxis("top", functions=(lambda s: s / per_epoch, lambda e: e * per_epoch))
    above.set_xlabel("epoch")
    above.tick_params(length=3)
