"""A comparison as one HTML file that asks the network for nothing."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.evaluation.analysis.bootstrap import CONFIDENCE_LEVEL
from detection.experiments import compare_charts, differences
from detection.experiments.compare_content import ExperimentData
from detection.experiments.verdict import DECIDES, Comparison, sign
from detection.report.charts.style import LINES
from detection.report.page import score_tables
from detection.report.page.metric_docs import NAMES

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def write(out: Path, contents: Sequence[ExperimentData], verdicts: Sequence[Comparison]) -> Path:
    """Write the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "report/page"]),  # the report's style is this page's too
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "signed": _signed, "short": _short}
    names = differences.names(contents)
    html = environment.get_template("comparison.html").render(
        names=names,
        colours=[LINES[i % len(LINES)] for i in range(len(names))],
        contents=contents,
        verdicts=[
            {
                "sentence": one.sentence,
                "reason": one.reason,
                "sign": one.sign,
                "stats": [] if one.identical else _stats(one),
            }
            for one in verdicts
        ],
        params=[list(table.itertuples()) for table in differences.params(contents)],
        code=differences.code(contents),
        metrics=_rows(differences.metrics(contents)),
        training=_rows(differences.training(contents)),
        classes=_classes(contents, verdicts),
        figures=compare_charts.draw(names, contents, verdicts),
        label_of=NAMES,
        decides=DECIDES,
        level=CONFIDENCE_LEVEL,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    return out


def _stats(verdict: Comparison) -> list[Row]:
    return [
        {"name": name, "one": one, "sign": sign(one), **_places(one.low, one.value, one.high)}
        for name, one in verdict.spread.stats.items()
    ]


def _places(low: float, value: float, high: float) -> Row:
    """Where an interval stands on a bar from -reach to +reach, in percent of its width."""
    reach = max(abs(low), abs(high), abs(value), 0.01) * 1.25
    left, middle, right = (50 + 50 * one / reach for one in (low, value, high))
    return {
        "left": round(left, 1),
        "middle": round(middle, 1),
        "width": round(right - left, 1),
        "reach": reach,
    }


def _rows(table: "pd.DataFrame") -> list[Row]:
    """Values and, from the second on, what they are more than the first."""
    rows = []
    for key, values in zip(table.index, table.to_numpy().tolist(), strict=True):
        more = [value - values[0] for value in values[1:]]
        rows.append({"key": str(key), "values": values, "more": more})
    return rows


def _classes(contents: Sequence[ExperimentData], verdicts: Sequence[Comparison]) -> list[Row]:
    """AP50 of each class, and each verdict's difference; in label order."""
    table = differences.classes(contents, "AP50")
    rows = []
    for i, (name, row) in enumerate(zip(table.index, table.to_numpy().tolist(), strict=True)):
        gains = [one.spread.per_class["AP50"][i] for one in verdicts]
        rows.append(
            {
                "name": name,
                "objects": int(row[0]),
                "values": row[1:],
                "gains": [{"one": one, "sign": sign(one)} for one in gains],
            }
        )
    return rows


def _score(value: float) -> str:
    return score_tables.NOTHING if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return score_tables.NOTHING if math.isnan(value) else f"{value:+.3f}"


def _short(value: float) -> str:
    """Counts and seconds without decimals."""
    return score_tables.NOTHING if math.isnan(value) else f"{value:,.0f}"
