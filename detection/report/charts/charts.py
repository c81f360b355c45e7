"""All charts of one experiment."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detection.report.charts import (
    ap_per_class,
    confusion,
    error_chart,
    learning_rate,
    localization,
    loss_curves,
    operating,
    pr_curves,
    pretrain_curves,
    recall_charts,
    validation_curves,
)
from detection.report.charts.hover import values
from detection.report.charts.style import house_style, to_png, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn(NamedTuple):
    """A chart as the page has it."""

    svg: str
    values: list[dict[str, Any]]
    """What lies under the pointer, see `hover.values`."""


def draw(reports: Path, folder: Path, smoothing: float) -> dict[str, Drawn]:
    """Draw every chart that there is data for.

    Args:
        reports: The folder of all reports.
        folder: Where each goes as `<name>.png`.
        smoothing: Of the loss curves, see `losses.draw`.

    Returns:
        Charts by name, for the page.
    """
    charts: dict[str, Callable[[Path], Figure | None]] = {
        "losses": partial(loss_curves.draw, smoothing=smoothing),
        "learning_rate": learning_rate.draw,
        "validation": validation_curves.draw,
        "pretrain": pretrain_curves.draw,
        "pr_curves": pr_curves.draw,
        "ap_per_class": ap_per_class.draw,
        "errors": error_chart.draw,
        "confusion": confusion.draw,
        "operating": operating.draw,
        "calibration": operating.draw_calibration,
        "recall": recall_charts.draw,
        "localisation": localization.draw,
    }
    drawn: dict[str, Drawn] = {}
    with house_style():
        for name, chart in charts.items():
            figure = chart(reports)
            if figure is not None:
                to_png(figure, folder / f"{name}.png")
                drawn[name] = Drawn(to_svg(figure, name), values(figure))
    return drawn
