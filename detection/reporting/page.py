"""`reports/index.html`: everything about one experiment in one file that asks the network for nothing."""

import base64
import importlib.metadata
import io
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from detection.reporting import tables
from detection.reporting.explain import HEADLINES, NAMES
from detection.reporting.files import read_json
from detection.reporting.samples import Sample, Tally
from detection.reporting.validation import monitored
from detection.tracking.facts import commit, experiment_name

PACKAGES = ("torch", "torchvision", "numpy", "pycocotools", "pandas", "matplotlib", "dvc", "mlflow")
DATASET_FIGURES = {
    "samples": "Training pictures with their objects; grey ones are marked difficult or crowd.",
    "class_counts": "Objects of each class in each split.",
    "box_sizes": "How large the training objects are, in pixels and as a share of the picture.",
}
WIDEST = 1400
"""Pixels that the dataset's figures are reduced to."""


def write(
    out: Path,
    reports: Path,
    figures: Mapping[str, str],
    samples: Sequence[Sample],
    total: Tally | None,
    threshold: float,
) -> Path:
    """Write the page.

    Args:
        out: The HTML file.
        reports: The folder of all reports; whatever is missing there, the page says so.
        figures: SVG by name; a figure that could not be drawn is left out.
        samples: Test pictures.
        total: Right, wrong and missed over the test split; None where it could not be counted.
        threshold: Score from which a detection was drawn and counted.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "duration": _duration, "embed": _embed}
    html = environment.get_template("page.html").render(
        **_experiment(reports),
        **_tables(reports),
        figures=figures,
        samples=samples,
        shape=_middle_shape(samples),
        total=total,
        threshold=threshold,
        dataset_figures=_dataset_figures(reports / "dataset"),
        versions=_versions(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


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
    scores = tables.scores(reports)
    values = {row["key"]: row["value"] for row in scores}
    card = read_json(reports / "dataset/card.json")
    return {
        "scores": scores,
        "cards": [
            {"name": NAMES.get(key, key), "value": values.get(key), "text": text}
            for key, text in HEADLINES.items()
        ],
        "classes": tables.classes(reports),
        "class_columns": list(tables.CLASS_COLUMNS.values()),
        "recipe": tables.recipe(reports),
        "card": card,
        "card_rows": tables.dataset(card),
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


def _middle_shape(samples: Sequence[Sample]) -> float:
    """The middle one of the pictures' width to height."""
    shapes = sorted(sample.truth.width / sample.truth.height for sample in samples)
    return shapes[len(shapes) // 2] if shapes else 1.0


def _versions() -> dict[str, str]:
    """Of what the numbers come from, without importing any of it."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def _embed(picture: Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _score(value: float | None) -> str:
    return tables.NOTHING if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    """`48 s`, `7 min 30 s`, `3 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
