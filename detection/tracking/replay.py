"""Fill a row from what `train` left in `reports/train`: the curves are written there first."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detection.params.reader import flatten
from detection.tracking import client, naming
from detection.tracking.client import latest_steps
from detection.tracking.live import METRICS_PER_CALL, Point, log_points
from detection.tracking.run import metric_of
from detection.tracking.store import Store

TRAIN = Path("reports/train")
SAMPLES = "samples"  # the folder in the reports, and in the row
RECORDED = ("model", "dataset", "seed", "recipe")  # of recipe.json
Lacks = Callable[[Point], bool]


def replay(store: Store, run_id: str, folder: Path = TRAIN, lacks: Lacks | None = None) -> int:
    """Log what a row lacks of a training's curves, point for point as the training logs them, and its files.

    Args:
        store: The store.
        run_id: The row.
        folder: The training's reports.
        lacks: Says whether the row lacks a point; by default, whether it comes after the last one of its
            metric. Steps arrive in order, so that is all that a training could not send.

    Returns:
        How many points were logged.
    """
    lacks = lacks or _after(latest_steps(store.client.get_run(run_id)))
    missing = [point for point in curves(folder) if lacks(point)]
    for start in range(0, len(missing), METRICS_PER_CALL):
        log_points(store.client, run_id, missing[start : start + METRICS_PER_CALL])
    for path in client.training_files(folder, folder.parent / "dataset", folder / SAMPLES):
        store.client.log_artifact(run_id, str(path), path.parent.name)
    return len(missing)


def gaps(store: Store, run_id: str) -> Lacks:
    """Say of each point whether a row lacks it, out of all the points that the row has; reads them all."""
    there: dict[str, set[tuple[int, int]]] = {}

    def lacks(point: Point) -> bool:
        name, _, time_ms, step = point
        if name not in there:
            history = store.client.get_metric_history(run_id, name)
            there[name] = {(one.step, one.timestamp) for one in history}
        return (step, time_ms) not in there[name]

    return lacks


def curves(folder: Path = TRAIN) -> list[Point]:
    """Both curves of a training: losses, and scores on val."""
    return [
        *_points(folder / "losses.csv", "loss/", own=("lr", "loss")),
        *_points(folder / "metrics.csv", "val/", own=("epoch",)),
    ]


def recorded_params(folder: Path = TRAIN) -> dict[str, str]:
    """What the training was made of, out of its `recipe.json`; empty where there is none."""
    recorded = _json(folder / "recipe.json")
    wanted: dict[str, Any] = {key: recorded[key] for key in RECORDED if key in recorded}
    return naming.as_text(flatten(wanted))


def recorded_environment(folder: Path = TRAIN) -> dict[str, str]:
    """What the training was run with, out of its `environment.json`; empty where there is none."""
    return {key: str(value) for key, value in _json(folder / "environment.json").items()}


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _after(latest: Mapping[str, int]) -> Lacks:
    return lambda point: point[3] > latest.get(point[0], -1)


def _points(path: Path, prefix: str, own: tuple[str, ...]) -> Iterator[Point]:
    """Read a curve: `step`, `time` (ms), the columns `own`, and one column a metric, that gets the prefix."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step, time_ms, epoch = int(row.pop("step")), int(row.pop("time")), row.pop("epoch")
            values = {
                name if name in own else metric_of(name, prefix): float(row[name])
                for name in row
                if row[name]
            }
            if "epoch" in own:
                values["epoch"] = float(epoch)
            for name, value in naming.finite(values).items():
                yield name, value, time_ms, step
