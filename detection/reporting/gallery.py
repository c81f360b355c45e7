"""All charts of one experiment."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detection.reporting import ap_per_class, learning_rate, losses, pr_curves, pretrain, validation
from detection.reporting.style import house_style, to_png, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(reports: Path, folder: Path, smoothing: float) -> dict[str, str]:
    """Draw every chart that there is data for.

    Args:
        reports: The folder of all reports.
        folder: Where each goes as `<name>.png`.
        smoothing: Of the loss curves, see `losses.draw`.

    Returns:
        SVG by name, for the page.
    """
    charts: dict[str, Callable[[Path], Figure | None]] = {
        "losses": partial(losses.draw, smoothing=smoothing),
        "learning_rate": learning_rate.draw,
        "validation": validation.draw,
        "pretrain": pretrain.draw,
        "pr_curves": pr_curves.draw,
        "ap_per_class": ap_per_class.draw,
    }
    drawn: dict[str, str] = {}
    with house_style():
        for name, chart in charts.items():
            figure = chart(reports)
            if figure is not None:
                to_png(figure, folder / f"{name}.png")
                drawn[name] = to_svg(figure, name)
    return drawn
