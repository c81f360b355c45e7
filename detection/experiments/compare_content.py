"""What a comparison reads of an experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from detection.data.index import Index
from detection.data.prepared import Prepared
from detection.errors import DataError
from detection.evaluation.protocol.results import SplitDetections
from detection.experiments.contents import Workspace, read_params
from detection.experiments.find import Experiment
from detection.params.reader import flatten
from detection.pipeline import locked_code
from detection.report.readers import read_json, read_table
from detection.tracking.naming import as_text

if TYPE_CHECKING:
    import pandas as pd

SCORED = (
    "data/prepared/test.npz",
    "data/prepared/classes.json",
    "data/prepared/meta.json",
    "reports/evaluation/detections.json",
    "reports/evaluation/metrics.json",
    "reports/evaluation/per_class.csv",
    "reports/train/recipe.json",
)
"""Without these there is nothing to compare."""
TOLD = ("dvc.lock", "params.yaml")
CURVES = ("reports/train/metrics.json", "reports/train/losses.csv", "reports/train/metrics.csv")
SECTIONS = ("prepare", "pretrain", "train", "evaluate")
"""Of `params.yaml`; the recipe is taken as it was merged, and the dataset's entry comes by name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExperimentData:
    """An experiment that was trained and evaluated."""

    name: str
    run_id: str | None
    params: dict[str, str]
    """By dotted key, as text: the merged recipe, the dataset's entry, the sections."""
    code: dict[str, str]
    """Modules it was run with, and their md5."""
    metrics: dict[str, float | None]
    """Of the test split."""
    training: dict[str, Any]
    """Summary of the training."""
    losses: "pd.DataFrame | None"
    """A row a step."""
    validation: "pd.DataFrame | None"
    """A row an epoch."""
    per_class: "pd.DataFrame"
    """A row a class."""
    prepared: Prepared
    truth: Index
    """The test split."""
    results: SplitDetections
    """Detections on it."""


def read(experiment: Experiment, folder: Path) -> ExperimentData:
    """Read an experiment.

    Args:
        experiment: Where it lies.
        folder: Empty; a copy of its files goes there, so that they are read as those of a workspace are.

    Raises:
        DataError: It was not evaluated, or trained again since, or its files are not on this machine.
    """
    experiment.check_scored()
    for path in (*SCORED, *TOLD, *CURVES):
        content = experiment.files.read(path)
        if content is None and path in SCORED:
            mend = (
                "it was not evaluated; dvc repro does that"
                if isinstance(experiment.files, Workspace)
                else "it was not evaluated, or its results are not in git: commit dvc.lock and reports"
            )
            raise DataError(f"{experiment.name} has no {path}: {mend}")
        if content is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    reports, prepared = folder / "reports", Prepared.load(folder / "data/prepared")
    truth = prepared.index("test")
    rows = msgspec.json.decode((reports / "evaluation/detections.json").read_bytes())
    per_class = read_table(reports / "evaluation/per_class.csv")
    assert per_class is not None, "the table has a row a class"
    return ExperimentData(
        name=experiment.name,
        run_id=experiment.run_id(),
        params=_params(read_json(reports / "train/recipe.json"), read_params(Workspace(folder))),
        code=locked_code(Workspace(folder).read("dvc.lock")),
        metrics=read_json(reports / "evaluation/metrics.json"),
        training=read_json(reports / "train/metrics.json"),
        losses=read_table(reports / "train/losses.csv"),
        validation=read_table(reports / "train/metrics.csv"),
        per_class=per_class,
        prepared=prepared,
        truth=truth,
        results=SplitDetections.from_coco(truth, rows),
    )


def _params(made_of: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, str]:
    chosen = {key: made_of[key] for key in ("model", "dataset", "seed", "recipe") if key in made_of}
    chosen["data"] = (sections.get("datasets") or {}).get(made_of.get("dataset")) or {}
    return as_text(flatten(chosen | {key: sections[key] for key in SECTIONS if sections.get(key)}))


def check_same_test(contents: Sequence[ExperimentData]) -> None:
    """Scores of different pictures, objects or classes say nothing about each other.

    Raises:
        DataError: Not all experiments were scored on the same test split.
    """
    first = contents[0]
    for other in contents[1:]:
        what = _difference(first, other)
        if what is not None:
            raise DataError(
                f"{first.name} and {other.name} were scored on different test data: {what}. Which of them is "
                "better cannot be said; evaluate both on the same test split"
            )


def _difference(first: ExperimentData, second: ExperimentData) -> str | None:
    a, b = first.prepared, second.prepared
    names = [str(one.meta.get("dataset")) for one in (a, b)]
    if a.classes != b.classes:
        return f"{len(a.classes)} classes of {names[0]}, {len(b.classes)} of {names[1]}, not the same ones"
    if len(first.truth) != len(second.truth):
        return f"{len(first.truth)} pictures of {names[0]}, {len(second.truth)} of {names[1]}"
    pairs = ((getattr(first.truth, one.name), getattr(second.truth, one.name)) for one in fields(Index))
    if not all(np.array_equal(*pair) for pair in pairs):
        return f"as many pictures of {names[0]} and {names[1]}, but others, or other objects on them"
    if a.meta["listing"]["test"] != b.meta["listing"]["test"]:
        return f"the picture files of {names[0]} and {names[1]} differ in size"
    return None
