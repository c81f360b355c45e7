"""`reports/search/<study>/`: page and table of a hyper-parameter search."""

import base64
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.experiments.search_space import Space
from detection.files import REPORTS, dvc_root
from detection.report.charts.vega import ChartData, for_page, to_svg
from detection.report.page.html import PAGE, code, templates

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 5
"""Finished trials from which an importance is estimated, and trials that count as the best."""
MAX_VALUE_DIGITS = ".4g"


def write_search_page(space: Space, study: "optuna.Study", verdict: Sequence[str]) -> Path:
    """Write `index.html` and `trials.csv`; returns the page.

    Args:
        space: The space.
        study: Optuna's study, with a finished trial or more.
        verdict: Lines on whether the best is better than the next.
    """
    import pandas as pd

    rows = _rows(space, study)
    finished = [row for row in rows if row["state"] == "finished"]
    best = max(finished, key=lambda row: float(row["value"]))
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    command = next((row["command"] for row in rows if row["state"] == "pruned" and row["command"]), "")
    environment = templates(PAGE, autoescape=True)
    environment.filters["code"] = code
    html = environment.get_template("search.html").render(
        name=study.study_name,
        objective=space.settings.objective,
        sampler=space.settings.sampler,
        best=best["value"],
        experiment=best["experiment"],
        params={key: best[key] for key in space.dimensions},
        finished=len(finished),
        pruned=len(rows) - len(finished),
        verdict=verdict,
        keys=list(space.dimensions),
        rows=rows,
        command=command,
        charts=_charts(space, study, rows),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    folder = dvc_root() / REPORTS / "search" / str(study.study_name)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "trials.csv", index=False)
    (folder / "index.html").write_text(html, encoding="utf-8")
    return folder / "index.html"


def _rows(space: Space, study: "optuna.Study") -> list[dict[str, Any]]:
    """Finished and pruned trials in their order."""
    rows: list[dict[str, Any]] = []
    for one in study.get_trials(deepcopy=False):
        if one.state.name not in ("COMPLETE", "PRUNED"):
            continue
        scores = [one.value] if one.state.name == "COMPLETE" else list(one.intermediate_values.values())
        values = space.changes(one.params)
        rows.append(
            {
                "trial": one.number,
                "experiment": one.user_attrs.get("experiment", ""),
                "state": "finished" if one.state.name == "COMPLETE" else "pruned",
                "value": max((score for score in scores if score is not None), default=None),
                **{key: _text(values[key]) for key in space.dimensions},
                "reason": one.user_attrs.get("reason", ""),
                "command": one.user_attrs.get("command", ""),
            }
        )
    return rows


def _text(value: Any) -> str:
    return format(value, MAX_VALUE_DIGITS) if isinstance(value, float) else json.dumps(value).strip('"')


def _charts(space: Space, study: "optuna.Study", rows: list[dict[str, Any]]) -> dict[str, str]:
    """SVG elements by name."""
    best, trials = None, []
    for row in rows:
        if row["state"] == "finished":
            best = max(row["value"], best if best is not None else row["value"])
        params = ", ".join(f"{key} {row[key]}" for key in space.dimensions)
        trials.append({key: row[key] for key in ("trial", "state", "value")} | {"best": best})
        trials[-1]["params"] = params
    charts = {"search_trials": for_page(to_svg("search_trials", ChartData(trials)), "trials")}
    if sum(row["state"] == "finished" for row in rows) >= MIN_TRIALS and len(space.dimensions) > 1:
        importance = [{"param": key, "importance": value} for key, value in importances(study).items()]
        charts["search_importance"] = for_page(to_svg("search_importance", ChartData(importance)), "importance")
    return charts


def importances(study: "optuna.Study") -> dict[str, float]:
    """Importance of each key as a fraction, by PED-ANOVA, which needs no package beside Optuna.

    It compares the trials above a quantile with all of them, and needs five or more above it: the best tenth of many.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    finished = sum(one.state.name == "COMPLETE" for one in study.get_trials(deepcopy=False))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, MIN_TRIALS / finished)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few trials, which the caption says
        values: dict[str, float] = get_param_importances(study, evaluator=evaluator)
    return values
