"""Tables of what differs between experiments, as pandas frames with a column an experiment."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detection.experiments.compare_content import ExperimentData

if TYPE_CHECKING:
    import pandas as pd

TRAINING = ("epochs", "steps", "seconds", "best_epoch")
"""Of the training's summary."""


def params(contents: Sequence[ExperimentData]) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Params that are not the same in all experiments, as text: those all have, and those some have.

    Detectors of another kind have params of their own; the second table is empty where one has no such param.
    """
    import pandas as pd

    keys = dict.fromkeys(key for one in contents for key in one.params)
    rows = {key: [one.params.get(key, "") for one in contents] for key in keys}
    shared = {key: row for key, row in rows.items() if all(key in one.params for one in contents)}
    parts = (shared, {key: row for key, row in rows.items() if key not in shared})
    differing = ({key: row for key, row in part.items() if len(set(row)) > 1} for part in parts)
    both, some = (pd.DataFrame.from_dict(part, orient="index", columns=names(contents)) for part in differing)
    return both, some


def code(contents: Sequence[ExperimentData]) -> list[str]:
    """Modules that the experiments were not all run with in the same version."""
    paths = sorted({path for one in contents for path in one.code})
    return [path for path in paths if len({one.code.get(path) for one in contents}) > 1]


def metrics(contents: Sequence[ExperimentData]) -> "pd.DataFrame":
    """Scores on test, NaN where there was nothing to find."""
    return _numbers(
        {key: [one.metrics.get(key) for one in contents] for key in contents[0].metrics}, contents
    )


def training(contents: Sequence[ExperimentData]) -> "pd.DataFrame":
    """What the trainings cost."""
    return _numbers({key: [one.training.get(key) for one in contents] for key in TRAINING}, contents)


def classes(contents: Sequence[ExperimentData], metric: str) -> "pd.DataFrame":
    """One score of every class; the first column is `objects`."""
    import pandas as pd

    first = contents[0].per_class
    columns = {name: one.per_class[metric] for name, one in zip(names(contents), contents, strict=True)}
    table = pd.DataFrame({"objects": first["objects"], **columns})
    table.index = pd.Index(first["class"].astype(str))
    return table


def names(contents: Sequence[ExperimentData]) -> list[str]:
    """One name an experiment, each of them once."""
    given = [one.name for one in contents]
    return [name if given.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(given)]


def _numbers(rows: dict[str, list[float | None]], contents: Sequence[ExperimentData]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame.from_dict(rows, orient="index", columns=names(contents)).astype("float64")
