"""How the boxes of right detections lie on their objects."""

from pathlib import Path
from typing import TYPE_CHECKING

from detection.report.charts.style import BLUE, SOFT
from detection.report.readers import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "IoU": "IoU with the object",
    "x": "shifted to the right, in widths",
    "y": "shifted down, in heights",
    "width": "too wide, in widths",
    "height": "too high, in heights",
}


def draw(reports: Path) -> "Figure | None":
    """Draw `evaluation/localization.csv`; None where no detection is right."""
    from matplotlib.figure import Figure

    table = read_table(reports / "evaluation/localization.csv")
    if table is None or table["detections"].sum() == 0:
        return None
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    shape = figure.subplot_mosaic([["IoU", "IoU", "x", "y"], ["IoU", "IoU", "width", "height"]])
    for name, axes in shape.items():
        part = table[table["measure"] == name]
        middle, width = (part["low"] + part["high"]) / 2, part["high"] - part["low"]
        axes.bar(middle, part["detections"], width=width * 0.92, color=BLUE)
        axes.axvline(part["median"].iloc[0], color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_title(f"{TITLES[name]}\nmedian {part['median'].iloc[0]:.3f}", fontsize=9, loc="left")
        axes.grid(visible=False, axis="x")
        axes.tick_params(labelsize=8)
    shape["IoU"].set_ylabel("right detections")
    return figure
