"""`detection summary`: scores of the experiment in the workspace, and the next commands."""

import argparse
from pathlib import Path
from typing import Any

from detection.errors import DataError
from detection.files import REPORT_PAGE, REPORTS_EVALUATION, REPORTS_TRAIN, read_json
from detection.params.reader import read_yaml

METRICS = (
    ("COCO", ("AP", "AP50", "AP75")),
    ("by size", ("AP_small", "AP_medium", "AP_large")),
    ("recall", ("AR1", "AR10", "AR100")),
    ("by size", ("AR_small", "AR_medium", "AR_large")),
    ("VOC", ("voc_ap50_11pt", "voc_ap50_area")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags."""


def run(args: argparse.Namespace) -> str:
    """Score table, path of the report, and the next commands.

    Raises:
        DataError: The workspace has no evaluation.
    """
    scores = _read(REPORTS_EVALUATION / "metrics.json")
    recipe = _read(REPORTS_TRAIN / "recipe.json")
    lines = [f"{recipe['model']} on {recipe['dataset']}, scores on the test split", ""]
    for title, names in METRICS:
        cells = "".join(f"{name:>16} {_number(scores.get(name))}" for name in names)
        lines.append(f"  {title:<8}{cells}")
    lines += ["", f"  report            {REPORT_PAGE.resolve()}", ""]
    lines += [f"  {what:<17} {command}" for what, command in _next_commands(recipe["model"])]
    return "\n".join(lines)


def _next_commands(model: str) -> list[tuple[str, str]]:
    others = [name for name in read_yaml("params.yaml")["models"] if name != model]
    other = "retinanet" if "retinanet" in others else (others or [model])[0]
    return [
        ("activate", "source .venv/bin/activate"),
        ("set the baseline", 'git add dvc.lock reports && git commit -m "baseline"'),
        ("run another one", f"dvc exp run -S model={other}"),
        ("compare", "make compare    (with curves and images: make ui)"),
        ("use the detector", "detection predict IMAGE_OR_FOLDER"),
    ]


def _number(value: float | None) -> str:
    """Three decimals; a dash for a missing value or NaN."""
    return "    -" if value is None or value != value else f"{value:.3f}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; run `dvc repro` first")
    return read_json(path)
