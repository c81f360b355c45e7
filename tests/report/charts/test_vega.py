"""The templates render the data of one experiment, and those of several revisions as DVC fills them."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert
import yaml

from detection.report.charts.vega import INK, TEMPLATES, ChartData, fill_template, for_page, to_png, to_svg

ROOT = Path(__file__).parents[3]
RATES = pd.DataFrame({"step": [1, 2, 3], "lr": [0.1, 0.2, float("nan")]})


def plots() -> dict[str, dict[str, Any]]:
    """Plots of dvc.yaml that have a template, by title."""
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    return {title: plot for entry in entries if isinstance(entry, dict) for title, plot in entry.items()}


def test_template_is_filled_without_channels_of_the_revision() -> None:
    spec = fill_template("learning_rate", ChartData(RATES, "a title", {"steps_per_epoch": 2.0}))
    assert spec["title"]["text"] == "a title"
    assert spec["data"]["values"][2] == {"step": 3, "lr": None}
    assert spec["params"] == [{"name": "steps_per_epoch", "value": 2.0}]
    assert '"field": "rev"' not in json.dumps(spec)
    assert "title" not in fill_template("learning_rate", ChartData(RATES))


def test_facet_by_revision_becomes_one_chart_of_the_given_size() -> None:
    rows = pd.DataFrame({"actual": ["a"], "predicted": ["a"], "count": [1]})
    spec = fill_template("confusion", ChartData(rows, size={"width": 99}))
    assert "facet" not in spec
    assert spec["width"] == 99
    assert fill_template("ap_per_class", ChartData(rows, size={"width": 99}))["spec"]["width"] == 99


def test_same_data_gives_the_same_svg() -> None:
    first, second = (to_svg("learning_rate", ChartData(RATES)) for _ in range(2))
    assert first == second


def test_page_gets_the_colors_of_its_theme_and_unique_ids() -> None:
    data = ChartData(pd.DataFrame({"actual": ["a"], "predicted": ["b"], "count": [1]}))
    svg = to_svg("confusion", data)
    page = for_page(svg, "confusion")
    assert INK in svg
    assert INK not in page
    assert "currentColor" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert ids
    assert all(name.startswith("confusion-") for name in ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert " width=" not in page[: page.index(">")]
    assert 'fill="white"/>' in svg
    assert 'fill="white"/>' not in page


def test_names_are_escaped() -> None:
    evil = '"><script>alert(1)</script>&'
    rows = pd.DataFrame({"class": [evil], "objects": [3], "AP": [0.5], "AP50": [0.6]})
    svg = for_page(to_svg("ap_per_class", ChartData(rows, title=evil)), "ap_per_class")
    assert "<script" not in svg
    assert svg.count("&lt;script&gt;") >= 2  # title and axis
    marks = re.findall(r'aria-label="([^"]*)"', svg)
    assert any("alert(1)" in mark for mark in marks)


def test_png_is_written(tmp_path: Path) -> None:
    to_png(to_svg("learning_rate", ChartData(RATES)), tmp_path / "new/lr.png")
    assert (tmp_path / "new/lr.png").read_bytes().startswith(b"\x89PNG")


def test_dvc_finds_the_templates() -> None:
    assert {path.name for path in (ROOT / ".dvc/plots").iterdir()} == {p.name for p in TEMPLATES.iterdir()}
    for title, plot in plots().items():
        assert (TEMPLATES / f"{plot['template']}.json").is_file(), title


@pytest.mark.parametrize("revisions", [["workspace"], ["workspace", "main"]])
@pytest.mark.parametrize("title", plots())
def test_dvc_renders_the_plots(title: str, revisions: list[str], finished: Path) -> None:
    from dvc_render.vega import VegaRenderer

    plot = plots()[title]
    ((file, y),) = plot["y"].items()
    table = pd.read_csv(finished / file, dtype=str, keep_default_na=False)  # as DVC reads it
    rows = [row | {"rev": rev} for rev in revisions for row in table.to_dict("records")]
    names = {"x": plot["x"], "y": y, "title": title, "template": plot["template"]}
    spec = VegaRenderer(rows, title, template_dir=str(TEMPLATES), **names).get_filled_template()
    assert "<DVC_METRIC" not in json.dumps(spec)
    svg = vl_convert.vegalite_to_svg(spec, vl_version="5.21")
    assert title.split(" (")[0] in svg
    assert "NaN" not in svg
    assert len(revisions) == 1 or "main" in svg
