"""Rendering of the Vega-Lite templates as SVG for the page and as PNG files.

`dvc plots show` and `dvc plots diff` use the same templates (`.dvc/plots` links to them): DVC fills them with
the rows of a CSV file and the revision of each row, `rev`; `fill_template` with the rows of one experiment.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES, STYLE = Path(__file__).parent / "templates", Path(__file__).parent / "style.json"
VEGA_LITE_VERSION = "5.21"
PNG_SCALE = 1.5
PAGE_SCALE = 1.25
"""Largest scale of a chart on the page."""

# Colors of text and lines, which the page replaces with those of its light or dark theme.
INK, SOFT, GRID = "#1f2329", "#646c76", "#d9dee4"
THEME = {INK: "currentColor", SOFT: "var(--soft)", GRID: "var(--line)"}


class ChartData(NamedTuple):
    """Content of a template."""

    rows: "pd.DataFrame | list[dict[str, Any]]"
    """Data as a table, whose NaN becomes null, or as records, for which pandas is not imported."""
    title: str = ""
    """Line above the chart, empty for none."""
    params: Mapping[str, Any] = {}
    """New values of the template's `params`."""
    size: Mapping[str, int] = {}
    """`width` and `height` in pixels instead of the template's."""


def fill_template(name: str, data: ChartData) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart of one experiment.

    Args:
        name: Template in `TEMPLATES`, without suffix.
        data: Content.
    """
    spec: dict[str, Any] = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    spec = _without_revision(spec)
    records = data.rows
    if not isinstance(records, list):
        records = json.loads(records.to_json(orient="records", double_precision=15))
    spec["data"] = {"values": records}
    if data.title:
        spec["title"]["text"] = data.title
    else:
        del spec["title"]
    for param in spec.get("params", []):
        param["value"] = data.params.get(param["name"], param["value"])
    spec.get("spec", spec).update(data.size)
    return spec


def _without_revision(node: Any) -> Any:
    """Remove the channels that encode the revision; a facet by revision becomes its chart."""
    if isinstance(node, list):
        return [_without_revision(item) for item in node if not _encodes_revision(item)]
    if not isinstance(node, dict):
        return node
    if _encodes_revision(node.get("facet")):
        node = {k: v for k, v in node.items() if k not in ("facet", "columns", "spec")} | node["spec"]
    return {key: _without_revision(value) for key, value in node.items() if not _encodes_revision(value)}


def _encodes_revision(node: Any) -> bool:
    return isinstance(node, dict) and node.get("field") == "rev"


def to_svg(name: str, data: ChartData) -> str:
    """Render a chart as an SVG document; its ids begin with the chart's name."""
    import vl_convert

    style = json.loads(STYLE.read_text(encoding="utf-8"))
    svg = vl_convert.vegalite_to_svg(fill_template(name, data), VEGA_LITE_VERSION, config=style)
    # Vega numbers ids per process: count from 0 in each chart, so that the same data gives the same file.
    ids = {old: f"{name}-{i}" for i, old in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))}
    return re.sub(r'(\bid="|url\(#|href="#)([^")]+)', lambda m: m[1] + ids.get(m[2], m[2]), svg)


def to_png(svg: str, path: Path) -> None:
    """Write a chart as PNG on white."""
    import vl_convert

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))


def for_page(svg: str, name: str) -> str:
    """Return a chart as a responsive SVG element without background, in the colors of the page's theme."""
    width = float(re.findall(r'width="([\d.]+)"', svg)[0])
    svg = re.sub(r'<rect width="[^"]*" height="[^"]*" fill="white"/>', "", svg, count=1)
    svg = re.sub(r' width="[^"]*" height="[^"]*"', "", svg, count=1)
    for color, variable in THEME.items():
        svg = svg.replace(color, variable)
    style = f'style="max-width: {round(PAGE_SCALE * width)}px"'
    return svg.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}" {style}', 1)
