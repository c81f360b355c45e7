"""Everything that an MLflow run holds, to compare the runs of two trainings of one experiment."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TIMED_METRICS = ("system/", "speed/", "seconds", "images_per_second")
"""Prefixes of metrics that measure time."""
OWN = ("pid", "pid_started", "training_id", "dvc.workspace", "mlflow.note.content", "mlflow.user", "evaluation_key")
"""Tags and params of a process or a folder; the model card, which has a date; and a hash over the detector's file,
which has the duration of its training."""
Curve = list[tuple[int, float]]


@dataclass
class RunContent:
    """Content of a run, without the times of its points."""

    status: str
    metrics: dict[str, Curve] = field(default_factory=dict)
    """Step and value of each point, by step."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[tuple[str, str]] = field(default_factory=list)
    """Name and digest of each dataset input."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """md5 by path; those of the LoggedModels below `model/`."""

    @classmethod
    def read(cls, client: Any, run_id: str) -> "RunContent":
        """Content of a run of a store, with its LoggedModels.

        Args:
            client: `mlflow.MlflowClient`.
            run_id: The run.
        """
        run = client.get_run(run_id)
        names = [name for name in run.data.metrics if not name.startswith(TIMED_METRICS)]
        outputs = run.outputs.model_outputs if run.outputs else []
        files = dict(_files(client, run.info.artifact_uri, ""))
        for one in outputs:
            files |= dict(_files(client, client.get_logged_model(one.model_id).artifact_location, "model/"))
        return cls(
            run.info.status,
            {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in sorted(names)},
            {key: value for key, value in run.data.params.items() if key not in OWN},
            {key: value for key, value in run.data.tags.items() if key not in OWN},
            sorted((one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs),
            files,
        )

    def differences(self, other: "RunContent") -> list[str]:
        """Differences from another run, of the names of the artifacts only."""
        pairs: list[tuple[str, Any, Any]] = [("status", self.status, other.status)]
        pairs += [("datasets", self.datasets, other.datasets)]
        for what in ("metrics", "params", "tags"):
            mine, theirs = getattr(self, what), getattr(other, what)
            pairs += [(f"{what} {key}", mine.get(key), theirs.get(key)) for key in sorted(mine.keys() | theirs.keys())]
        found = [f"{what}: {str(one)[:200]} and {str(two)[:200]}" for what, one, two in pairs if one != two]
        return found + [f"artifact {name}" for name in sorted(self.artifacts.keys() ^ other.artifacts.keys())]

    def largest_difference(self, other: "RunContent") -> float:
        """Largest difference between values of one metric and step."""
        worst = 0.0
        for name in self.metrics.keys() & other.metrics.keys():
            theirs = dict(other.metrics[name])
            worst = max(worst, *(abs(value - theirs.get(step, value)) for step, value in self.metrics[name]))
        return worst

    def summary(self) -> str:
        """Numbers of points, params, tags and artifacts."""
        points = sum(map(len, self.metrics.values()))
        return (
            f"{points} points in {len(self.metrics)} metrics, {len(self.params)} params, {len(self.tags)} tags, "
            f"{len(self.artifacts)} artifacts"
        )


def _files(client: Any, uri: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Path and md5 of all artifacts below a URI."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with TemporaryDirectory(prefix="run-content-") as folder:
        get_artifact_repository(uri, tracking_uri=client.tracking_uri).download_artifacts("", folder)
        for path in sorted(one for one in Path(folder).rglob("*") if one.is_file()):
            yield prefix + path.relative_to(folder).as_posix(), hashlib.md5(path.read_bytes()).hexdigest()
