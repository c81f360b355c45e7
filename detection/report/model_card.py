"""`reports/model_card.md`: what a detector is, what it can do and what not, written from the run."""

import re
from pathlib import Path
from typing import Any

from detection.pipeline import commit, locked_md5
from detection.report.charts.confusion import mistakes
from detection.report.charts.error_chart import SUMS
from detection.report.charts.recall_charts import in_words
from detection.report.charts.validation_curves import monitored
from detection.report.page import score_tables
from detection.report.page.advice import ENOUGH
from detection.report.readers import read_json, read_table

WORST = 4
"""Kinds of objects that are named as found rarely, and pairs of classes as mixed up."""


def write(out: Path, reports: Path) -> Path:
    """Write the card; whatever is missing under `reports`, it says so.

    Args:
        out: The Markdown file.
        reports: The folder of all reports.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown; names that could break a table go through `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score_tables.three_digits, "cell": _cell}
    text = environment.get_template("model_card.md").render(**_experiment(reports), **_evaluation(reports))
    out.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
    return out


def _experiment(reports: Path) -> dict[str, Any]:
    made_of = read_json(reports / "train/recipe.json")
    summary = read_json(reports / "train/metrics.json")
    return {
        "model": made_of.get("model", "unknown model"),
        "dataset": made_of.get("dataset", "unknown dataset"),
        "classes": made_of.get("classes", []),
        "seed": made_of.get("seed", 0),
        "recipe": made_of.get("recipe", {}),
        "rows": score_tables.recipe(reports),
        "training": summary,
        "monitor": monitored(summary),
        "pretraining": read_json(reports / "pretrain/metrics.json"),
        "card": read_json(reports / "dataset/card.json"),
        "commit": commit(),
        "weights": locked_md5().get("models/detector.pt"),
        "run_id": read_json(reports / "evaluation/run.json").get("run_id"),
    }


def _evaluation(reports: Path) -> dict[str, Any]:
    spread = read_json(reports / "evaluation/intervals.json")
    point = read_json(reports / "evaluation/analysis.json").get("threshold", {})
    all_found, weak = _weak(reports)
    return {
        "scores": score_tables.scores(reports),
        "speed": score_tables.speed(reports),
        "by_class": score_tables.classes(reports),
        "rounds": spread.get("rounds"),
        "level": spread.get("level"),
        "point": point if point.get("score") is not None else None,
        "kinds": _kinds(reports),
        "limits": _mixed_up(reports),
        "all_found": all_found,
        "weak": weak,
    }


def _kinds(reports: Path) -> list[tuple[str, float]]:
    """Kinds of errors and what each costs, the dearest first."""
    table = read_table(reports / "evaluation/errors.csv")
    if table is None:
        return []
    table = (
        table[~table["error_type"].isin(SUMS)].dropna().sort_values("dAP50", ascending=False, kind="stable")
    )
    return [(str(row["error_type"]), float(row["dAP50"])) for row in table.to_dict("records")]


def _mixed_up(reports: Path) -> list[str]:
    pairs = [f"{actual} for {said} ({count:,})" for actual, said, count in mistakes(reports, WORST)]
    return [f"It takes {', '.join(map(_cell, pairs))}."] if pairs else []


def _weak(reports: Path) -> tuple[float, list[tuple[str, float, int]]]:
    """The share of all objects that is found, and kinds of objects that are found most rarely."""
    table = read_table(reports / "evaluation/recall.csv")
    if table is None:
        return 0.0, []
    first = table[table["attribute"] == table["attribute"].iloc[0]]
    whole = float(first["detected_above_threshold"].sum() / first["objects"].sum())
    rare = table[(table["objects"] >= ENOUGH) & (table["recall_above_threshold"] < whole - 0.02)]
    rare = rare.sort_values("recall_above_threshold", kind="stable").head(WORST)
    return whole, [
        (
            in_words(str(row["attribute"]), row["low"], row["high"]),
            float(row["recall_above_threshold"]),
            int(row["objects"]),
        )
        for row in rare.to_dict("records")
    ]


def _cell(text: str) -> str:
    """Text that stands in a table of Markdown whatever it holds."""
    for special in ("\\", "|", "`", "*", "_", "<", "["):
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
