"""`reports/index.html`: one experiment in one file that makes no network request."""

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from PIL import Image

from detection.files import read_json, read_table
from detection.pipeline import commit, experiment_name
from detection.report.charts.experiment_charts import monitored
from detection.report.images.gallery import PLATE_HEIGHT, Album, data_url
from detection.report.page import score_tables

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = Path(__file__).parent
"""Folder of the templates."""
DATASET_FIGURES = {
    "samples": "Training images with ground truth; difficult and crowd objects are gray.",
    "class_counts": "Objects per class and split.",
    "box_sizes": "Sizes of the training objects, in pixels and relative to the image.",
}
ANCHORS = {"errors": "error-analysis", "training": "training", "classes": "classes", "recall": "recall"}
"""Sections whose findings are listed at the top, in order of priority, and their anchors."""
MAX_FIGURE_PX = 1400
"""Largest width of the dataset's figures on the page."""


def write_page(
    out: Path, reports: Path, charts: Mapping[str, str], album: Album | None, advice: Mapping[str, str]
) -> Path:
    """Write the page.

    Args:
        out: HTML file.
        reports: Folder of all reports; the page names the files that are missing.
        charts: SVG elements by name.
        album: Galleries of test images, or None.
        advice: Findings by section.
    """
    environment = templates(PAGE, autoescape=True)
    environment.filters.update(embed=data_url, code=code, duration=lambda s: timedelta(seconds=round(s)))
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    html = environment.get_template("page.html").render(
        **_page_context(reports),
        charts=charts,
        album=album,
        plate_height=PLATE_HEIGHT,
        advice=advice,
        findings=[(ANCHORS[name], advice[name]) for name in ANCHORS if name in advice][:3],
        dataset_figures=_dataset_figures(reports / "dataset"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def templates(folder: Path, autoescape: bool) -> "Environment":
    """Jinja templates of a folder; undefined names are errors."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score_tables.score
    return environment


def experiment_context(reports: Path) -> dict[str, Any]:
    """Model, dataset, training and identifiers of an experiment, for the templates."""
    made_of = read_json(reports / "train/recipe.json")
    summary = read_json(reports / "train/metrics.json")
    point = read_json(reports / "evaluation/tables/analysis.json").get("threshold", {})
    return {
        "scored": read_json(reports / "evaluation/scored.json"),
        "slices": score_tables.slices(reports),
        "model": made_of.get("model", "unknown model"),
        "dataset": made_of.get("dataset", "unknown dataset"),
        "seed": made_of.get("seed", 0),
        "architecture": made_of.get("recipe", {}).get("architecture", ""),
        "backbone": made_of.get("recipe", {}).get("backbone", ""),
        "recipe": score_tables.recipe(reports),
        "training": summary,
        "monitor": monitored(summary),
        "pretraining": read_json(reports / "pretrain/metrics.json"),
        "start": made_of.get("start"),
        "card": read_json(reports / "dataset/card.json"),
        "scores": score_tables.scores(reports),
        "classes": score_tables.classes(reports),
        "speed": score_tables.speed(reports),
        "point": point if all(point.get(key) is not None for key in ("score", "precision", "recall")) else None,
        "run_id": read_json(reports / "evaluation/run.json").get("run_id"),
        "commit": commit(),
    }


def _page_context(reports: Path) -> dict[str, Any]:
    context = experiment_context(reports)
    by_key = {row["key"]: row for row in context["scores"]}
    return context | {
        "headlines": [
            {"name": key, "value": None, "interval": None, **by_key.get(key, {}), "text": text}
            for key, text in score_tables.HEADLINES.items()
        ],
        "class_columns": list(score_tables.CLASS_COLUMNS.values()),
        "errors_per_class": read_table(reports / "evaluation/tables/errors_per_class.csv"),
        "confusions": score_tables.confused_classes(reports),
        "card_rows": score_tables.dataset(context["card"]),
        "environment": read_json(reports / "train/environment.json"),
        "experiment": experiment_name(),
    }


def _dataset_figures(folder: Path) -> list[dict[str, Any]]:
    """Existing figures of `prepare`: `name`, `text`, `image`."""
    figures = []
    for name, text in DATASET_FIGURES.items():
        if (folder / f"{name}.png").is_file():
            with Image.open(folder / f"{name}.png") as image:
                image.load()
                image.thumbnail((MAX_FIGURE_PX, 100 * MAX_FIGURE_PX))
                figures.append({"name": name, "text": text, "image": image.convert("RGB")})
    return figures


def code(text: str) -> Markup:
    """Escape a text and mark up its `code`."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
