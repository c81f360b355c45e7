"""Fill a row from what `train` left in `reports/train`: the curves are written there first."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from detection.params.reading import flatten
from detection.tracking import facts
from detection.tracking.live import METRICS_PER_CALL, Point, log_points
from detection.tracking.store import Store

TRAIN = Path("reports/train")


def replay(store: Store, run_id: str, folder: Path = TRAIN) -> None:
    """Log both curves of a training, point for point as it logged them, and store its files."""
    points = [
        *_points(folder / "losses.csv", "loss/", own=("lr", "loss")),
        *_points(folder / "metrics.csv", "val/", own=("epoch",)),
    ]
    for start in range(0, len(points), METRICS_PER_CALL):
        log_points(store.client, run_id, points[start : start + METRICS_PER_CALL])
    for path in facts.training_files(folder, folder.parent / "dataset"):
        store.client.log_artifact(run_id, str(path), path.parent.name)


def recorded_params(folder: Path = TRAIN) -> dict[str, str]:
    """What the training was made of, out of its `recipe.json`; empty where there is none."""
    path = folder / "recipe.json"
    if not path.is_file():
        return {}
    recorded = json.loads(path.read_text(encoding="utf-8"))
    wanted = {key: recorded[key] for key in ("model", "dataset", "seed", "recipe") if key in recorded}
    return facts.as_text(flatten(wanted))


def _points(path: Path, prefix: str, own: tuple[str, ...]) -> Iterator[Point]:
    """Read a curve: `step`, `time` (ms), the columns `own`, and one column a metric, that gets the prefix."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step, time_ms, epoch = int(row.pop("step")), int(row.pop("time")), row.pop("epoch")
            values = {name if name in own else prefix + name: float(row[name]) for name in row if row[name]}
            if "epoch" in own:
                values["epoch"] = float(epoch)
            for name, value in facts.finite(values).items():
                yield name, value, time_ms, step
