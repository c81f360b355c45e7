"""Fill a row from what `train` left in `reports/train`: the curves are written there first."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from detection.params.load import flatten
from detection.tracking import facts
from detection.tracking.live import METRICS_PER_CALL, Point, log_points
from detection.tracking.store import Store

TRAIN = Path("reports/train")
NOT_CURVES = ("step", "epoch", "time")
AS_THEY_ARE = ("lr", "loss")


def replay(store: Store, run_id: str, folder: Path = TRAIN) -> None:
    """Log both curves of a training, point for point as it logged them, and store its files."""
    points = [*_points(folder / "losses.csv", "loss/"), *_points(folder / "metrics.csv", "val/")]
    for start in range(0, len(points), METRICS_PER_CALL):
        log_points(store.client, run_id, points[start : start + METRICS_PER_CALL])
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.name != "run.json":
            store.client.log_artifact(run_id, str(path), folder.name)


def recorded_params(folder: Path = TRAIN) -> dict[str, str]:
    """What the training was made of, out of its `recipe.json`; empty where there is none."""
    path = folder / "recipe.json"
    if not path.is_file():
        return {}
    recorded = json.loads(path.read_text(encoding="utf-8"))
    wanted = {key: recorded[key] for key in ("model", "dataset", "seed", "recipe") if key in recorded}
    return facts.as_text(flatten(wanted))


def _points(path: Path, prefix: str) -> Iterator[Point]:
    """Read a curve: columns `step` and `time` (ms), and one column a metric."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {
                key if key in AS_THEY_ARE or key.startswith(prefix) else prefix + key: float(text)
                for key, text in row.items()
                if key not in NOT_CURVES and text
            }
            step, time_ms = int(float(row["step"])), int(float(row["time"]))
            for name, value in facts.finite(values).items():
                yield name, value, time_ms, step
