"""`reports/index.html`: everything about one experiment in one file that asks the network for nothing."""

import base64
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from detection.pipeline import commit, experiment_name
from detection.report.charts.charts import Drawn
from detection.report.charts.confusion import mistakes
from detection.report.charts.validation_curves import monitored
from detection.report.images.gallery import Album, Card
from detection.report.images.svg_boxes import PLATE, BoxMark, data_url
from detection.report.page import score_tables
from detection.report.page.metric_docs import HEADLINES, NAMES
from detection.report.readers import read_json

PACKAGES = ("torch", "torchvision", "numpy", "pycocotools", "pandas", "matplotlib", "dvc", "mlflow")
DATASET_FIGURES = {
    "samples": "Training pictures with their objects; grey ones are marked difficult or crowd.",
    "class_counts": "Objects of each class in each split.",
    "box_sizes": "How large the training objects are, in pixels and as a share of the picture.",
}
ANCHORS = {"errors": "errors-made", "training": "training", "classes": "classes", "recall": "recall"}
"""Sections whose advice stands on top, the most telling first, and where each is."""
WIDEST = 1400
"""Pixels that the dataset's figures are reduced to."""


def write(
    out: Path, reports: Path, figures: Mapping[str, Drawn], album: Album | None, advice: Mapping[str, str]
) -> Path:
    """Write the page.

    Args:
        out: The HTML file.
        reports: The folder of all reports; whatever is missing there, the page says so.
        figures: Charts by name; one that could not be drawn is left out.
        album: Galleries of test pictures; None: there are none.
        advice: What to do next, by section.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score_tables.three_digits,
        "duration": _duration,
        "embed": data_url,
        "code": _code,
    }
    start = album.score if album else 0.0
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    html = environment.get_template("page.html").render(
        **_experiment(reports),
        **_tables(reports),
        figures=figures,
        album=album,
        objects_of=partial(_objects, start),
        found_of=partial(_found, start),
        plate_height=PLATE,
        advice=advice,
        steps=[(ANCHORS[name], advice[name]) for name in ANCHORS if name in advice][:3],
        dataset_figures=_dataset_figures(reports / "dataset"),
        versions=_versions(),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def _objects(start: float, card: Card) -> list[tuple[BoxMark, str]]:
    """Objects with their state at the slider's beginning."""
    return [
        (mark, mark.kind + (" missed" if mark.kind == "object" and mark.score < start else ""))
        for mark in card.drawing.objects
    ]


def _found(start: float, card: Card) -> list[tuple[BoxMark, str]]:
    """Detections likewise."""
    return [(mark, mark.kind + (" low" if mark.score < start else "")) for mark in card.drawing.found]


def _experiment(reports: Path) -> dict[str, Any]:
    """Names, and how the training went."""
    made_of = read_json(reports / "train/recipe.json")
    summary = read_json(reports / "train/metrics.json")
    recipe = made_of.get("recipe", {})
    return {
        "model": made_of.get("model", "unknown model"),
        "dataset": made_of.get("dataset", "unknown dataset"),
        "seed": made_of.get("seed", 0),
        "architecture": recipe.get("architecture", ""),
        "backbone": recipe.get("backbone", ""),
        "training": summary,
        "monitor": monitored(summary),
        "pretraining": read_json(reports / "pretrain/metrics.json"),
        "run_id": read_json(reports / "evaluation/run.json").get("run_id"),
        "commit": commit(),
        "experiment": experiment_name(),
    }


def _tables(reports: Path) -> dict[str, Any]:
    scores = score_tables.scores(reports)
    values = {row["key"]: row for row in scores}
    error_columns, error_rows = score_tables.errors(reports)
    point = read_json(reports / "evaluation/analysis.json").get("threshold", {})
    card = read_json(reports / "dataset/card.json")
    return {
        "scores": scores,
        "cards": [
            {
                "name": NAMES.get(key, key),
                "value": values[key]["value"] if key in values else None,
                "interval": values[key]["interval"] if key in values else None,
                "text": text,
            }
            for key, text in HEADLINES.items()
        ],
        "classes": score_tables.classes(reports),
        "class_columns": list(score_tables.CLASS_COLUMNS.values()),
        "speed": score_tables.speed(reports),
        "error_columns": error_columns,
        "error_rows": error_rows,
        "mistakes": mistakes(reports),
        "point": point if point.get("score") is not None else None,
        "recipe": score_tables.recipe(reports),
        "card": card,
        "card_rows": score_tables.dataset(card),
    }


def _dataset_figures(folder: Path) -> list[dict[str, Any]]:
    """The PNGs that `prepare` drew, those that are there."""
    found = []
    for name, text in DATASET_FIGURES.items():
        if (folder / f"{name}.png").is_file():
            with Image.open(folder / f"{name}.png") as picture:
                picture.load()
                picture.thumbnail((WIDEST, 100 * WIDEST))
                found.append({"name": name, "text": text, "picture": picture.convert("RGB")})
    return found


def _versions() -> dict[str, str]:
    """Of what the numbers come from, without importing any of it."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def _code(text: str) -> Markup:
    """What stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _duration(seconds: float) -> str:
    """`48 s`, `7 min 30 s`, `3 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
