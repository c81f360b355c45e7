"""Where rows are kept: the tracking URI, the store behind it, and the rows that dead processes left open.

`MLFLOW_TRACKING_URI` if set, else `sqlite:///<DVC_ROOT>/mlflow.db`: DVC's temporary workspaces are deleted
with everything in them, so nothing may hang on the working directory.
"""

import logging
import os
import socket
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from detection.errors import TrackingError
from detection.files import dvc_root, locked

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
# MLflow's own defaults are 120 s, tried 7 times: a server that is away must not hold up a training.
CLIENT_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


@dataclass(frozen=True, slots=True)
class Store:
    """An open tracking store."""

    client: Any
    """`mlflow.MlflowClient`."""
    experiment: str
    """Id of the experiment that the rows belong to."""
    uri: str
    """Tracking URI, absolute."""


def switched_off() -> bool:
    """Whether `DETECTION_TRACKING=off` says that no row is wanted."""
    return os.environ.get("DETECTION_TRACKING", "").lower() in ("off", "0", "false", "no")


def tracking_uri() -> str:
    """The store's URI, with a relative SQLite path made absolute from `DVC_ROOT`.

    Raises:
        TrackingError: A kind of store that this project cannot use.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or SQLITE + "mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str((dvc_root() / uri.removeprefix(SQLITE)).resolve())
    if ("://" not in uri and not uri.startswith("databricks")) or uri.startswith(("file:", "sqlite:")):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri} is not a store that MLflow still writes rows to; "
            f"give sqlite:////absolute/path/mlflow.db or http://server:5000, or unset it for ./mlflow.db"
        )
    return uri


def lock_path() -> Path:
    """The lock held while the store is made and while a row is chosen.

    Beside a SQLite file, which several repositories may share; of a server each repository has its own.
    """
    uri = tracking_uri()
    return (
        Path(f"{uri.removeprefix(SQLITE)}.lock") if uri.startswith(SQLITE) else dvc_root() / "mlflow.db.lock"
    )


def artifact_home(uri: str) -> Path:
    """Where the rows' files go: beside a SQLite file, which may outlive the repository that made it."""
    home = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else dvc_root()
    return (home / "mlartifacts").resolve()


def connect() -> Store:
    """Open the store, making database and experiment where they are missing.

    Under a lock: four processes that were the first to touch a SQLite database at once left it half migrated.

    Raises:
        TrackingError: The store cannot be used as configured.
        Exception: Whatever MLflow raises where the store cannot be reached.
    """
    uri = tracking_uri()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "detection"
    mlflow = import_mlflow()
    with locked(lock_path()):
        if uri.startswith(SQLITE):
            _write_ahead_log(Path(uri.removeprefix(SQLITE)))
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
        except ModuleNotFoundError as error:
            raise TrackingError(f"MLFLOW_TRACKING_URI={uri} needs a driver: uv add {error.name}") from None
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # Absolute, or files would go to the working directory; a server knows its own place.
            here = None if uri.startswith("http") else artifact_home(uri).as_uri()
            return Store(client, client.create_experiment(name, artifact_location=here), uri)
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name!r} is deleted in {uri}; "
            f"`mlflow experiments restore -x {experiment.experiment_id}` brings it back"
        )
    return Store(client, experiment.experiment_id, uri)


def import_mlflow() -> Any:
    """Import mlflow with telemetry off, short timeouts, and warnings only."""
    for key, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(key, value)
    import mlflow

    for noisy, level in (
        ("mlflow", logging.WARNING),
        ("alembic", logging.WARNING),
        ("urllib3", logging.ERROR),
    ):
        logging.getLogger(noisy).setLevel(level)
    return mlflow


def process_tags() -> dict[str, str]:
    """Who writes the row: host, process id, and the process's start time, since ids are used again."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "pid_started": str(int(psutil.Process().create_time())),
    }


def close_orphans(store: Store) -> None:
    """Close as KILLED the rows that are RUNNING in the name of a dead process of this host."""
    running = store.client.search_runs(
        [store.experiment], f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    )
    for row in running:
        if not _alive(row.data.tags):
            log.info("row %s was left open by a process that is gone; closed as KILLED", row.info.run_name)
            store.client.set_terminated(row.info.run_id, "KILLED")


def _alive(tags: dict[str, str]) -> bool:
    try:
        started = psutil.Process(int(tags["pid"])).create_time()
        return abs(started - int(tags["pid_started"])) < 2
    except (KeyError, ValueError, psutil.Error):
        return False


def _write_ahead_log(path: Path) -> None:
    """Readers no longer wait for a writer; the mode stays with the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=20)) as database:
        database.execute("PRAGMA journal_mode=WAL")
