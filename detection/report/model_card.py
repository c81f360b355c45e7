"""`reports/model_card.md`: the detector, its data, scores and limits."""

import re
from pathlib import Path
from typing import Any

from detection.files import read_json
from detection.pipeline import locked_md5
from detection.report.page import score_tables
from detection.report.page.advice import MIN_OBJECTS
from detection.report.page.html import experiment_context, templates

MAX_ENTRIES = 4
"""Groups of low recall and pairs of confused classes that the card names."""
MIN_RECALL_GAP = 0.02


def write_model_card(out: Path, reports: Path) -> Path:
    """Write the card.

    Args:
        out: Markdown file.
        reports: Folder of all reports; the card names what is missing.
    """
    environment = templates(Path(__file__).parent, autoescape=False)  # Markdown: names go through `cell`
    environment.filters["cell"] = _cell
    text = environment.get_template("model_card.md").render(**experiment_context(reports), **_limits(reports))
    out.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
    return out


def _limits(reports: Path) -> dict[str, Any]:
    intervals = read_json(reports / "evaluation/tables/intervals.json")
    total, bins = score_tables.recall_bins(reports, MIN_OBJECTS)
    return {
        "class_names": read_json(reports / "train/recipe.json").get("classes", []),
        "weights_md5": locked_md5().get("models/detector.pt"),
        "rounds": intervals.get("rounds"),
        "level": intervals.get("level"),
        "error_gains": score_tables.error_gains(reports),
        "confusions": score_tables.confused_classes(reports, MAX_ENTRIES),
        "recall": total,
        "low_recall": [row for row in bins if row["recall"] < total - MIN_RECALL_GAP][:MAX_ENTRIES],
    }


def _cell(text: str) -> str:
    """Escape a text for a Markdown table."""
    for special in ("\\", "|", "`", "*", "_", "<", "["):
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
