"""How every chart looks: on disk as PNG, on the page as SVG that follows the reader's light or dark theme."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.report.images.boxes_on_image import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that occur nowhere else, so that `to_svg` can swap them for the page's own.
INK, SOFT, GRID = "#1f2329", "#646c76", "#d9dee4"
THEME = {INK: "currentColor", SOFT: "var(--soft)", GRID: "var(--line)"}
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = PALETTE
LINES = (BLUE, RED, GREEN, ORANGE, PINK, SKY, GREY)
"""Okabe and Ito's colours in an order for lines: light yellow cannot be read on white."""

WIDER = 125
"""Most pixels on the page for an inch of a figure."""


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings for every chart."""
    import matplotlib
    from cycler import cycler

    settings: dict[Any, Any] = {
        "font.size": 10,
        "svg.fonttype": "none",
        "svg.hashsalt": "detection",
        "text.parse_math": False,  # a class name may hold a dollar
        "text.color": INK,
        "axes.edgecolor": SOFT,
        "axes.labelcolor": SOFT,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=LINES),
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.8,
        "lines.solid_joinstyle": "round",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield


def chart(width: float = 9.0, height: float = 3.6) -> "tuple[Figure, Axes]":
    """A figure of some inches with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def whole_numbers(axes: "Axes") -> None:
    """Count epochs in whole numbers on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def to_png(figure: "Figure", path: Path) -> Path:
    """Write a figure on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
    return path


def to_svg(figure: "Figure", name: str) -> str:
    """A figure as an SVG element without background, in the page's colours and as wide as its place.

    Args:
        figure: Drawn in `house_style`.
        name: Prefix of its ids; several SVGs stand in one page.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    widest = f'style="max-width: {round(WIDER * figure.get_size_inches()[0])}px"'
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf"\1 {widest}", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"\b(id=\"|url\(#|href=\"#)", rf"\1{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, own in THEME.items():
        svg = svg.replace(colour, own)
    return svg.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1)
