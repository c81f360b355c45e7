"""`detection summary`: the scores of the experiment in this workspace, and how to go on."""

import json
from pathlib import Path
from typing import Any

from detection.errors import DataError
from detection.params.reader import read_yaml

METRICS = Path("reports/evaluation/metrics.json")
RECIPE = Path("reports/train/recipe.json")
TRAINING = Path("reports/train/metrics.json")
ROWS = (
    ("COCO", ("AP", "AP50", "AP75")),
    ("by size", ("AP_small", "AP_medium", "AP_large")),
    ("recall", ("AR1", "AR10", "AR100")),
    ("by size", ("AR_small", "AR_medium", "AR_large")),
    ("VOC", ("voc_ap50_11pt", "voc_ap50_area")),
)


def summary() -> str:
    """The score table of `reports/evaluation/metrics.json`, the page's path, and what to type next.

    Raises:
        DataError: There is no evaluation yet.
    """
    scores, made = _read(METRICS), _read(RECIPE)
    lines = [f"{made['model']} on {made['dataset']}, scores on its test split", ""]
    for title, names in ROWS:
        cells = "".join(f"{name:>16} {_number(scores.get(name))}" for name in names)
        lines.append(f"  {title:<8}{cells}")
    lines += ["", f"  the report        {Path('reports/index.html').resolve()}", ""]
    lines += [f"  {what:<17} {command}" for what, command in _next(made["model"])]
    return "\n".join(lines)


def _next(model: str) -> list[tuple[str, str]]:
    others = [name for name in read_yaml("params.yaml")["models"] if name != model]
    other = "retinanet" if "retinanet" in others else (others or [model])[0]
    return [
        ("first", "source .venv/bin/activate"),
        (
            "keep it",
            'git add dvc.lock reports && git commit -m "baseline"    (what others are compared with)',
        ),
        ("change one word", f"dvc exp run -S model={other}"),
        ("compare", "make compare    (the same with curves and pictures: make ui)"),
        ("use it", "detection predict PICTURE_OR_FOLDER"),
    ]


def _number(value: float | None) -> str:
    """Three decimals; a dash where there was nothing to score (NaN)."""
    return "    -" if value is None or value != value else f"{value:.3f}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is not there yet; run `dvc repro` first") from None
    return content
