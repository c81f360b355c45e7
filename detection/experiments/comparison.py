"""Comparison of experiments: their data, differing params and code, and which one is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from detection.data.loading.index import Index
from detection.data.loading.prepared import Prepared
from detection.errors import DataError
from detection.evaluation.analysis.bootstrap import BootstrapResult, Difference, paired
from detection.evaluation.analysis.resampling import BootstrapSample
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from detection.experiments.find import Experiment
from detection.experiments.repository import Workspace, read_params
from detection.files import read_json, read_table
from detection.pipeline import LOCK, PARAMS, locked_code
from detection.text import flatten
from detection.tracking.client import as_text, start_digest

if TYPE_CHECKING:
    import pandas as pd
import math
from typing import TYPE_CHECKING

from detection.evaluation.analysis.confidence import CONFIDENCE_LEVEL

REQUIRED = (
    "data/prepared/test.npz",
    "data/prepared/meta.json",
    "reports/evaluation/tables/detections.json",
    "reports/evaluation/metrics.json",
    "reports/evaluation/tables/per_class.csv",
    "reports/train/recipe.json",
)
OPTIONAL = (LOCK, PARAMS, "data/prepared/test_listing.json", "reports/train/metrics.json")
PARAM_SECTIONS = ("prepare", "pretrain", "train", "evaluate")
"""Sections of params.yaml that are compared; the recipe is compared as merged, the dataset by its entry."""
DECISIVE_METRIC = "AP"
"""Metric that decides which experiment is better."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExperimentData:
    """Data of a trained and evaluated experiment."""

    name: str
    """Name for output."""
    run_id: str | None
    """MLflow run."""
    params: dict[str, str]
    """Merged recipe, dataset entry and sections as text, by dotted key."""
    code: dict[str, str]
    """md5 by code dependency of the pipeline."""
    metrics: dict[str, float | None]
    """Scores on the test split."""
    training: dict[str, Any]
    """Summary of the training."""
    per_class: "pd.DataFrame"
    """One row per class."""
    prepared: Prepared
    """Prepared data."""
    ground_truth: Index
    """Test split."""
    detections: SplitDetections
    """Detections on the test split."""


def read(experiment: Experiment, folder: Path) -> ExperimentData:
    """Read an experiment.

    Args:
        experiment: The experiment.
        folder: Empty folder that receives a copy of the files.

    Raises:
        DataError: The experiment was not evaluated, or was trained again since, or its files are not on this
            machine.
    """
    experiment.check_scored()
    for path in (*REQUIRED, *OPTIONAL):
        content = experiment.files.read(path)
        if content is None and path in REQUIRED:
            fix = (
                "it was not evaluated; run `dvc repro`"
                if isinstance(experiment.files, Workspace)
                else "it was not evaluated, or its results are not in git; commit dvc.lock and reports"
            )
            raise DataError(f"{experiment.name} has no {path}: {fix}")
        if content is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    reports, prepared = folder / "reports", Prepared.load(folder / "data/prepared")
    ground_truth = prepared.index("test")
    entries = msgspec.json.decode((reports / "evaluation/tables/detections.json").read_bytes())
    per_class = read_table(reports / "evaluation/tables/per_class.csv")
    assert per_class is not None, "the table has one row per class"
    return ExperimentData(
        name=experiment.name,
        run_id=experiment.run_id(),
        params=_params(read_json(reports / "train/recipe.json"), read_params(Workspace(folder))),
        code=locked_code(Workspace(folder).read(LOCK)),
        metrics=read_json(reports / "evaluation/metrics.json"),
        training=read_json(reports / "train/metrics.json"),
        per_class=per_class,
        prepared=prepared,
        ground_truth=ground_truth,
        detections=SplitDetections.from_coco(ground_truth, entries),
    )


def read_all(experiments: Sequence[Experiment]) -> list[ExperimentData]:
    """Read experiments that were evaluated on the same test split.

    Raises:
        DataError: One cannot be read, or they were evaluated on different test data.
    """
    data = []
    for experiment in experiments:
        with TemporaryDirectory(prefix="detection-compare-") as folder:
            data.append(read(experiment, Path(folder)))
    check_same_test(data)
    return data


def _params(recorded: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, str]:
    chosen = {key: recorded[key] for key in ("model", "dataset", "seed", "recipe") if key in recorded}
    source = recorded.get("start", {}).get("source", {})
    chosen["start"] = {"from": source.get("from"), "digest": start_digest(source)}
    chosen["data"] = (sections.get("datasets") or {}).get(recorded.get("dataset")) or {}
    return as_text(flatten(chosen | {key: sections[key] for key in PARAM_SECTIONS if sections.get(key)}))


def check_same_test(experiments: Sequence[ExperimentData]) -> None:
    """Refuse to compare scores on different images, objects or classes.

    Raises:
        DataError: The experiments were evaluated on different test splits.
    """
    first = experiments[0]
    for other in experiments[1:]:
        difference = _difference(first, other)
        if difference is not None:
            raise DataError(
                f"{first.name} and {other.name} were evaluated on different test data: {difference}; "
                "evaluate both on the same test split"
            )


def _difference(first: ExperimentData, second: ExperimentData) -> str | None:
    a, b = first.prepared, second.prepared
    names = [str(one.meta.get("dataset")) for one in (a, b)]
    if a.classes != b.classes:
        return f"{len(a.classes)} classes of {names[0]}, {len(b.classes)} other classes of {names[1]}"
    if len(first.ground_truth) != len(second.ground_truth):
        return f"{len(first.ground_truth)} images of {names[0]}, {len(second.ground_truth)} of {names[1]}"
    columns = (field.name for field in fields(Index))
    pairs = ((getattr(first.ground_truth, name), getattr(second.ground_truth, name)) for name in columns)
    if not all(np.array_equal(*pair) for pair in pairs):
        return f"the same number of images of {names[0]} and {names[1]}, but other images or other objects"
    listings = [one.meta["listing"].get("test") for one in (a, b)]
    if None not in listings and listings[0] != listings[1]:  # experiments of older versions have none
        return f"the image files of {names[0]} and {names[1]} differ in size"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Paired bootstrap of an experiment and the first one."""

    first: str
    """Name of the first experiment."""
    name: str
    """Name of this experiment."""
    bootstrap: BootstrapResult[Difference]
    """Differences `name` - `first` of AP, AP50 and AP75, overall and per class."""
    identical: bool
    """True if both have exactly the same detections."""

    @property
    def decisive(self) -> Difference:
        """Difference of the decisive metric."""
        return self.bootstrap.stats[DECISIVE_METRIC]

    @property
    def sign(self) -> int:
        """1: better, -1: worse, 0: undecided on these images."""
        return sign(self.decisive)

    @property
    def sentence(self) -> str:
        """Result in one line."""
        if self.identical:
            return f"{self.name} and {self.first} are identical: the same detections on every test image"
        return {
            1: f"{self.name} is better than {self.first}",
            -1: f"{self.name} is worse than {self.first}",
            0: f"{self.name} and {self.first}: no significant difference on {self.bootstrap.images:,} images",
        }[self.sign]


def sign(difference: Difference) -> int:
    """Sign of an interval; 0 if it contains zero or is NaN."""
    return int(difference.low > 0) - int(difference.high < 0)


def compare(experiments: Sequence[ExperimentData], rounds: int) -> list[Comparison]:
    """Compare every experiment with the first by a paired bootstrap over images.

    Args:
        experiments: Evaluated on the same test split.
        rounds: Bootstrap rounds.
    """
    samples, names = [_sample(one) for one in experiments], unique_names(experiments)
    return [
        Comparison(
            first=names[0],
            name=names[i],
            bootstrap=paired(samples[0], samples[i], rounds),
            identical=_are_equal(experiments[0].detections, experiments[i].detections),
        )
        for i in range(1, len(experiments))
    ]


def unique_names(experiments: Sequence[ExperimentData]) -> list[str]:
    """One name per experiment, numbered where two are equal."""
    names = [one.name for one in experiments]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _are_equal(first: SplitDetections, second: SplitDetections) -> bool:
    names = (field.name for field in fields(SplitDetections))
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def _sample(data: ExperimentData) -> BootstrapSample:
    overlaps = Overlaps.of_index(data.ground_truth, data.detections, len(data.prepared.classes))
    return BootstrapSample.of(overlaps, match(overlaps), num_images=len(data.ground_truth))


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
    """Gain in AP50 per class, the largest first; `*` marks those that are significant for the number of classes."""
    import pandas as pd

    pairs = zip(first.prepared.classes, comparison.bootstrap.per_class["AP50"], strict=True)
    known = [(name, gain) for name, gain in pairs if not math.isnan(gain.value)]
    marks = significant([gain for _, gain in known])
    gains = [(name, _gain(gain, mark)) for (name, gain), mark in zip(known, marks, strict=True)]
    gains = [gains[i] for i in sorted(range(len(known)), key=lambda i: -known[i][1].value)]
    left_out = max(0, len(gains) - MAX_CLASSES)
    if left_out:
        gains = gains[: MAX_CLASSES // 2] + gains[-MAX_CLASSES // 2 :]
    table = pd.DataFrame({"+/-": [text for _, text in gains]}, index=[name for name, _ in gains])
    rate = f"at most {1 - CONFIDENCE_LEVEL:.0%} of the * by chance" if len(known) > 1 else "*: the interval excludes 0"
    title = f"AP50 per class, {comparison.name} - {comparison.first} ({rate})"
    return _titled(table, title) + (f"\n  … and {left_out} classes in between" if left_out else "")


def significant(differences: Sequence[Difference]) -> list[bool]:
    """Mark intervals that exclude 0 and stay significant with the number of differences (Benjamini and Hochberg 1995).

    Of many classes without a difference, some intervals exclude 0 by chance. Of the marked ones, at most 5 % are
    expected to.
    """
    from scipy.stats import false_discovery_control

    if not differences:
        return []
    p_values = [1.0 if math.isnan(one.p_value) else one.p_value for one in differences]
    adjusted = false_discovery_control(p_values)
    return [bool(sign(one)) and bool(p <= 1 - CONFIDENCE_LEVEL) for one, p in zip(differences, adjusted, strict=True)]


def _gain(difference: Difference, marked: bool) -> str:
    star = "*" if marked else " "
    return f"{difference.value:+.3f} [{difference.low:+.3f} to {difference.high:+.3f}]{star}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
