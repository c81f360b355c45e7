"""A comparison as text for a terminal."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detection.evaluation.analysis.bootstrap import Difference
from detection.experiments import differences
from detection.experiments.compare_content import ExperimentData
from detection.experiments.verdict import Comparison, sign

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 12
"""Of more classes, those that gained and lost most are listed."""
MOST_FILES = 6
WIDEST = 32
"""Characters of a param's value."""
CAUTION = "The interval is about these test pictures. Another seed moves scores too: see `detection noise`."


def write(contents: Sequence[ExperimentData], verdicts: Sequence[Comparison]) -> str:
    """Verdicts, params, scores and classes, one below the other."""
    blocks = [f"{one.sentence}\n  {one.reason}" for one in verdicts]
    blocks.append(CAUTION)
    blocks.append(_params(contents))
    blocks.append(_table(_with_differences(differences.metrics(contents)), "scores on test"))
    blocks.append(_table(differences.training(contents), "training", digits=0))
    blocks += [_classes(one, contents[0]) for one in verdicts if not one.identical]
    return "\n\n".join(blocks)


def _params(contents: Sequence[ExperimentData]) -> str:
    table, partial = differences.params(contents)
    lines = ["params that differ", *_left(table)] if len(table) else ["params: no difference"]
    if len(partial):
        lines.append(f"  {len(partial)} more are params of one kind of detector: the page lists them")
    if files := differences.code(contents):
        more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
        lines.append(f"  code differs in {len(files)}: {', '.join(files[:MOST_FILES])}{more}")
    return "\n".join(lines)


def _left(table: "pd.DataFrame") -> list[str]:
    """Rows of words, each column as wide as its longest up to `WIDEST`."""
    rows = [
        ["", *table.columns],
        *([str(key), *row] for key, row in zip(table.index, table.to_numpy(), strict=True)),
    ]
    cut = [[one if len(one) <= WIDEST else one[: WIDEST - 1] + "…" for one in row[1:]] for row in rows]
    columns = [[row[0] for row in rows], *map(list, zip(*cut, strict=True))]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _with_differences(table: "pd.DataFrame") -> "pd.DataFrame":
    """A column after each but the first, with what it is more than the first."""
    first, *others = table.columns
    wide = table[[first]].copy()
    for name in others:
        wide[name] = table[name]
        wide[f"+/- {name}" if len(others) > 1 else "+/-"] = table[name] - table[first]
    return wide


def _table(table: "pd.DataFrame", title: str, digits: int = 3) -> str:
    text = table.astype(object)
    for name in table.columns:
        sign_ = "+" if name.startswith("+/-") else ""
        text[name] = [_number(value, f"{sign_}.{digits}f") for value in table[name]]
    return _framed(text, title)


def _framed(table: "pd.DataFrame", title: str) -> str:
    return "\n".join([title, *(f"  {line}" for line in table.to_string().splitlines())])


def _classes(verdict: Comparison, first: ExperimentData) -> str:
    """What each class gained in AP50, the greatest gain on top; `*` where the interval leaves out 0."""
    import pandas as pd

    gains = verdict.spread.per_class["AP50"]
    rows = [
        (name, one) for name, one in zip(first.prepared.classes, gains, strict=True) if one.value == one.value
    ]
    rows.sort(key=lambda pair: -pair[1].value)
    left_out = max(0, len(rows) - MOST_CLASSES)
    if left_out:
        rows = rows[: MOST_CLASSES // 2] + rows[-MOST_CLASSES // 2 :]
    table = pd.DataFrame({"+/-": [_gain(one) for _, one in rows]}, index=[name for name, _ in rows])
    title = f"AP50 by class, {verdict.name} - {verdict.first} (*: the interval leaves out 0)"
    return _framed(table, title) + (f"\n  … and {left_out} classes in between" if left_out else "")


def _gain(one: Difference) -> str:
    return f"{one.value:+.3f} [{one.low:+.3f} to {one.high:+.3f}]{'*' if sign(one) else ' '}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
