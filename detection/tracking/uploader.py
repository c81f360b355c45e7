"""Upload of curves: bring an MLflow run up to date with the CSV files under `reports/`.

Idempotent: only points after the run's last step of their metric are sent, in batches, so that a point keeps
its first timestamp. Used by a training's background thread, by `evaluate` and by `detection sync`.
"""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detection.files import REPORTS
from detection.tracking.client import metric_names

CURVES = (("train/losses.csv", "loss/", ("loss", "lr")), ("train/metrics.csv", "val/", ("epoch", "val_loss")))
"""File under `reports/`, prefix of its metrics' names, and columns that are metrics without the prefix.

A file has the columns `step`, `time` (Unix time in ms), `epoch`, and one column per metric.
"""
METRICS_PER_CALL = 1000
"""MLflow's limit."""
Point = tuple[str, float, int, int]
"""Metric name, value, Unix time in ms, step."""


class Uploader:
    """Sends the curves of one run. After an exception make a new one.

    Args:
        client: `mlflow.MlflowClient`.
        run_id: Run that the curves belong to.
        reports: Folder of the CSV files.
        fill_gaps: Also send missing steps before a metric's last one; reads every point of the run.
    """

    def __init__(self, client: Any, run_id: str, reports: Path = REPORTS, *, fill_gaps: bool = False) -> None:
        self._client, self._run_id = client, run_id
        self._curves = [_Curve(reports / file, prefix, plain) for file, prefix, plain in CURVES]
        self._steps: dict[str, set[int]] | None = {} if fill_gaps else None
        # No public attribute has the last steps; `get_metric_history` would read every point.
        self.latest: dict[str, int] = {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}
        """Last step of each metric of the run."""

    def send(self, until: int | None = None) -> Iterator[int]:
        """Send the points that the run lacks, up to a step; yields the size of each batch that was sent."""
        batch: list[Point] = []
        for curve in self._curves:
            for point in curve.points(until):
                if not self._has(point):
                    batch.append(point)
                if len(batch) == METRICS_PER_CALL:
                    yield self._log(batch)
                    batch = []
        yield self._log(batch)

    def _has(self, point: Point) -> bool:
        name, _, _, step = point
        if self._steps is None:
            return step <= self.latest.get(name, -1)
        if name not in self._steps:
            self._steps[name] = {one.step for one in self._client.get_metric_history(self._run_id, name)}
        return step in self._steps[name]

    def _log(self, batch: list[Point]) -> int:
        log_points(self._client, self._run_id, batch)
        self.latest |= {name: step for name, _, _, step in batch}
        return len(batch)


class _Curve:
    """Reads the points that were appended to a CSV file since the last call.

    A file that was written again, with new columns or after a resume, is read from its beginning.
    """

    def __init__(self, path: Path, prefix: str, unprefixed: tuple[str, ...]) -> None:
        self._path, self._prefix, self._unprefixed = path, prefix, unprefixed
        self._header, self._offset = b"", 0

    def points(self, until: int | None) -> Iterator[Point]:
        """Points of new lines up to a step; NaN, infinity and empty cells are skipped."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            header = file.readline()
            if header != self._header or os.fstat(file.fileno()).st_size < self._offset:
                self._header, self._offset = header, len(header)
            (columns,) = csv.reader([header.decode()])
            names = self._metrics(columns)
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # the training is still writing it
                    return
                (cells,) = csv.reader([line.decode()])
                row = dict(zip(columns, cells, strict=True))
                step, time_ms = int(row["step"]), int(row["time"])
                if until is not None and step > until:
                    return
                self._offset += len(line)
                for column, name in names.items():
                    if math.isfinite(value := float(row[column] or "nan")):
                        yield name, value, time_ms, step

    def _metrics(self, columns: list[str]) -> dict[str, str]:
        """Metric name per column; a column may bring its own prefix (`train/rpn_recall`)."""
        columns = [c for c in columns if c in self._unprefixed or c not in ("step", "time", "epoch")]
        names = [c if c in self._unprefixed or "/" in c else self._prefix + c for c in columns]
        return dict(zip(columns, metric_names(names).values(), strict=True))


def log_points(client: Any, run_id: str, points: list[Point], **link: str) -> None:
    """Log points in calls of at most `METRICS_PER_CALL`.

    Args:
        client: `mlflow.MlflowClient`.
        run_id: Run that the points belong to.
        points: The points.
        link: `model_id`, `dataset_name` and `dataset_digest` that they belong to too.
    """
    from mlflow.entities import Metric

    for start in range(0, len(points), METRICS_PER_CALL):
        batch = points[start : start + METRICS_PER_CALL]
        client.log_batch(run_id, metrics=[Metric(*point, **link) for point in batch])
