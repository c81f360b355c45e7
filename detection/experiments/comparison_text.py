"""Comparison of experiments as text for the terminal."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detection.evaluation.analysis.bootstrap import CONFIDENCE_LEVEL, Difference
from detection.experiments.comparison import DECISIVE_METRIC, Comparison, ExperimentData, sign, unique_names

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES = 12
"""Number of listed classes; of more, those with the largest gains and losses."""
MAX_CODE_PATHS = 6
MAX_VALUE_WIDTH = 32
"""Characters of a param's value."""
TRAINING_COLUMNS = ("epochs", "steps", "seconds", "best_epoch")
CAUTION = "The interval covers the choice of test images only. For the variation over seeds: detection noise."


def write(experiments: Sequence[ExperimentData], comparisons: Sequence[Comparison]) -> str:
    """Result, differing params and code, scores, training cost, and gain per class."""
    blocks = [f"{one.sentence}\n  {_reason(one)}" for one in comparisons]
    blocks += [CAUTION, _differing_params(experiments)]
    metrics = {key: [one.metrics.get(key) for one in experiments] for key in experiments[0].metrics}
    blocks.append(_table(_with_differences(_frame(metrics, experiments)), "scores on test"))
    training = {key: [one.training.get(key) for one in experiments] for key in TRAINING_COLUMNS}
    blocks.append(_table(_frame(training, experiments), "training", digits=0))
    blocks += [_classes(one, experiments[0]) for one in comparisons if not one.identical]
    return "\n\n".join(blocks)


def _reason(comparison: Comparison) -> str:
    if comparison.identical:
        return "no score differs"
    difference = comparison.decisive
    return (
        f"{DECISIVE_METRIC} {difference.value:+.3f} ({comparison.name} - {comparison.first}); "
        f"{CONFIDENCE_LEVEL:.0%} interval of {comparison.bootstrap.rounds:,} paired bootstrap rounds "
        f"[{difference.low:+.3f}, {difference.high:+.3f}], {difference.better:.0%} of them above 0"
    )


def _differing_params(experiments: Sequence[ExperimentData]) -> str:
    """Params and code that are not the same in all experiments."""
    keys = dict.fromkeys(key for one in experiments for key in one.params)
    rows = {key: [one.params.get(key, "") for one in experiments] for key in keys}
    differing = {key: row for key, row in rows.items() if len(set(row)) > 1}
    shared = {key: row for key, row in differing.items() if all(key in one.params for one in experiments)}
    lines = ["params: no difference"]
    if shared:
        lines = ["differing params", *_text_table(unique_names(experiments), shared)]
    if others := len(differing) - len(shared):
        lines.append(f"  {others} more exist in some of the recipes only")
    paths = sorted({path for one in experiments for path in one.code})
    changed = [path for path in paths if len({one.code.get(path) for one in experiments}) > 1]
    if changed:
        more = f" and {len(changed) - MAX_CODE_PATHS} more" if len(changed) > MAX_CODE_PATHS else ""
        lines.append(f"  code differs in {', '.join(changed[:MAX_CODE_PATHS])}{more}")
    return "\n".join(lines)


def _text_table(header: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    """Left-aligned table; values are cut at `MAX_VALUE_WIDTH`."""
    cells = [["", *header], *([key, *row] for key, row in rows.items())]
    cells = [[row[0], *(_shortened(one) for one in row[1:])] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _shortened(value: str) -> str:
    return value if len(value) <= MAX_VALUE_WIDTH else value[: MAX_VALUE_WIDTH - 1] + "…"


def _frame(rows: dict[str, list[float | None]], experiments: Sequence[ExperimentData]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame.from_dict(rows, orient="index", columns=unique_names(experiments)).astype("float64")


def _with_differences(table: "pd.DataFrame") -> "pd.DataFrame":
    """Insert, after each column but the first, its difference from the first."""
    first, *others = table.columns
    wide = table[[first]].copy()
    for name in others:
        wide[name] = table[name]
        wide[f"+/- {name}" if len(others) > 1 else "+/-"] = table[name] - table[first]
    return wide


def _table(table: "pd.DataFrame", title: str, digits: int = 3) -> str:
    text = table.astype(object)
    for name in table.columns:
        plus = "+" if name.startswith("+/-") else ""
        text[name] = [_number(value, f"{plus}.{digits}f") for value in table[name]]
    return _titled(text, title)


def _titled(table: "pd.DataFrame", title: str) -> str:
    return "\n".join([title, *(f"  {line}" for line in table.to_string().splitlines())])


def _classes(comparison: Comparison, first: ExperimentData) -> str:
    """Gain in AP50 per class, the largest first; `*` marks intervals that exclude 0."""
    import pandas as pd

    pairs = zip(first.prepared.classes, comparison.bootstrap.per_class["AP50"], strict=True)
    gains = [(name, gain) for name, gain in pairs if not math.isnan(gain.value)]
    gains.sort(key=lambda pair: -pair[1].value)
    left_out = max(0, len(gains) - MAX_CLASSES)
    if left_out:
        gains = gains[: MAX_CLASSES // 2] + gains[-MAX_CLASSES // 2 :]
    table = pd.DataFrame({"+/-": [_gain(one) for _, one in gains]}, index=[name for name, _ in gains])
    title = f"AP50 per class, {comparison.name} - {comparison.first} (*: the interval excludes 0)"
    return _titled(table, title) + (f"\n  … and {left_out} classes in between" if left_out else "")


def _gain(difference: Difference) -> str:
    star = "*" if sign(difference) else " "
    return f"{difference.value:+.3f} [{difference.low:+.3f} to {difference.high:+.3f}]{star}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
