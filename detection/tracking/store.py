"""The tracking store: its URI, its MLflow experiment, and runs that a dead process left open.

`MLFLOW_TRACKING_URI` if set, else `sqlite:///<DVC_ROOT>/mlflow.db`. Nothing depends on the working directory:
DVC deletes its temporary workspaces with everything in them.
"""

import importlib.util
import logging
import os
import re
import socket
import sqlite3
import time
import urllib.parse
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection import nodes
from detection.errors import TrackingError, reason
from detection.files import dvc_root, locked

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
CLIENT_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines each time that a stage ends a run
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one for each file that is read
    # MLflow's defaults are 120 s and 7 retries: a server that is down must not delay a training.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
SILENCE_S = 3600
"""A training sends points at least every half minute, but none while it validates."""
REFUSALS = {
    "UNAUTHENTICATED": "refuses the credentials in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "PERMISSION_DENIED": "denies this user the access",
}
"""Meaning of MLflow's error codes of HTTP 401 and 403."""
DRIVERS = {
    "s3": ("boto3", "boto3"),
    "gs": ("google", "google-cloud-storage"),
    "wasbs": ("azure", "azure-storage-blob azure-identity"),
    "abfss": ("azure", "azure-storage-file-datalake azure-identity"),
}
"""Module and package that clients of an object store need, by its scheme."""
LOG_LEVELS = {
    "mlflow": logging.WARNING,
    "mlflow.utils.environment": logging.ERROR,  # warns of the missing pip of a uv environment
    "mlflow.system_metrics": logging.ERROR,  # warns in each sample of values that a GPU does not report
    "alembic": logging.WARNING,
    "urllib3": logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Store:
    """An open tracking store."""

    client: Any
    """`mlflow.MlflowClient`."""
    experiment: str
    """Id of the MLflow experiment that the runs belong to."""
    uri: str
    """Tracking URI with an absolute path."""


def switched_off() -> bool:
    """Return True where `DETECTION_TRACKING=off` is set, and on all machines of a joint training but the first."""
    return os.environ.get("DETECTION_TRACKING", "").lower() in ("off", "0", "false", "no") or nodes.is_other()


def tracking_uri() -> str:
    """URI of the store; a relative SQLite path is resolved against `DVC_ROOT`.

    Raises:
        TrackingError: MLflow no longer writes to this type of store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or SQLITE + "mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str((dvc_root() / uri.removeprefix(SQLITE)).resolve())
    if ("://" not in uri and not uri.startswith("databricks")) or uri.startswith(("file:", "sqlite:")):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri}: MLflow does not write runs to this type of store any more; "
            f"set sqlite:////absolute/path/mlflow.db or http://server:5000, or unset it for ./mlflow.db"
        )
    return uri


def display_uri() -> str:
    """URI of the store for messages, without user and password."""
    return masked(tracking_uri())


def masked(text: str) -> str:
    """Text in which `***` stands for the credentials of URIs."""
    return re.sub(r"(?<=password=)[^&\s]+", "***", re.sub(r"(?<=//)[^/\s]+@", "***@", text))


def failure(error: BaseException) -> str:
    """First half of a message about an error of MLflow: the store refuses this user, or does not answer."""
    what = REFUSALS.get(str(getattr(error, "error_code", "")), "does not answer")
    return f"MLflow at {display_uri()} {what} ({masked(reason(error))})"


def lock_path() -> Path:
    """Lock held while the store is created and while an evaluation chooses its run.

    Beside a SQLite file, which several repositories may share; in the main repository for a server.
    """
    return Path(f"{_sqlite_file() or dvc_root() / 'mlflow.db'}.lock")


def artifact_root() -> Path:
    """Folder of the artifacts: beside a SQLite file, which may outlive the repository that created it."""
    file = _sqlite_file()
    return ((file.parent if file else dvc_root()) / "mlartifacts").resolve()


def _sqlite_file() -> Path | None:
    uri = tracking_uri()
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def connect() -> Store:
    """Open the store, and create the database and the MLflow experiment where they are missing.

    Holds a lock: four processes that opened a new SQLite database at once left it half migrated.

    Raises:
        TrackingError: The store cannot be used as configured.
        Exception: Any error of MLflow if the store does not answer.
    """
    mlflow, uri = import_mlflow(), tracking_uri()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "detection"
    with locked(lock_path()):
        if file := _sqlite_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file, timeout=20)) as database:
                database.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer; set for good
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
        except ModuleNotFoundError as error:
            raise TrackingError(f"MLFLOW_TRACKING_URI={display_uri()} needs a driver: uv add {error.name}") from None
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            _check_artifacts(None, name)
            # An absolute path, since MLflow resolves a relative one against the working directory; a server
            # has its own artifact root.
            location = None if uri.startswith("http") else artifact_root().as_uri()
            experiment = client.get_experiment(_create_experiment(client, name, location))
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} is deleted in {display_uri()}; "
            f"restore it: mlflow experiments restore -x {experiment.experiment_id}"
        )
    _check_artifacts(experiment.artifact_location, name)
    return Store(client, experiment.experiment_id, uri)


def _create_experiment(client: Any, name: str, location: str | None) -> str:
    """Create the MLflow experiment, or find that which another machine has created meanwhile; returns its id."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        experiment = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _check_artifacts(location: str | None, name: str) -> None:
    """Refuse a store whose artifacts would be on a single machine, or need a missing package.

    Args:
        location: Artifact location of the MLflow experiment; None: it does not exist yet.
        name: Name of the experiment.
    """
    scheme, _, path, *_ = urllib.parse.urlsplit(location or artifact_root().as_uri())
    folder = Path(urllib.parse.unquote(path))
    is_server = tracking_uri().startswith(("http", "databricks"))
    is_missing = scheme in ("", "file") and not is_server and (location is None or not folder.is_dir())
    if is_missing and _sqlite_file() and folder != artifact_root():
        raise TrackingError(
            f"the files of {display_uri()} are at {folder}, which does not exist; after moving the project, link its "
            f"old path: mkdir -p {folder.parent} && ln -s {artifact_root()} {folder}"
        )
    if is_missing and _sqlite_file() is None:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={display_uri()}: a database stores no artifacts, they would be on each user's "
            "machine; start `mlflow server --backend-store-uri … --artifacts-destination …` and set its "
            f"http://server:5000, or set a shared location: mlflow experiments create -n {name} -l s3://bucket/mlflow"
        )
    module, package = DRIVERS.get(scheme, ("mlflow", ""))
    if importlib.util.find_spec(module) is None:
        raise TrackingError(f"the files of {display_uri()} are in {scheme}: and need a driver: uv add {package}")


def import_mlflow() -> Any:
    """Import mlflow without telemetry, with short timeouts and without its log lines below a warning."""
    for key, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(key, value)
    import mlflow

    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    return mlflow


def process_tags() -> dict[str, str]:
    """Tags of the process that writes a run; its start time, since process ids are reused."""
    import psutil  # not at the top: training without a run works without it

    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": str(os.getpid()),
        "pid_started": str(int(psutil.Process().create_time())),
    }


def machine() -> str:
    """Identity of the boot and of the process-id namespace: containers and clones of a machine share a host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        import psutil

        return f"{uuid.getnode():x} {int(psutil.boot_time())}"


def close_orphans(store: Store) -> None:
    """Mark as KILLED the runs of this host whose process has died.

    A process of another boot or container cannot be looked up: its run is closed when it has sent nothing for
    `SILENCE_S`.
    """
    running = store.client.search_runs(
        [store.experiment], f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    )
    for run in running:
        here = run.data.tags.get("machine", machine()) == machine()
        if (not is_alive(run.data.tags)) if here else _is_silent(run):
            log.info("MLflow run %s: its process has died, marked as KILLED", run.info.run_name)
            store.client.set_terminated(run.info.run_id, "KILLED")


def is_alive(tags: Mapping[str, str]) -> bool:
    """Return True if the process of `process_tags` lives on this machine."""
    import psutil

    try:
        started = psutil.Process(int(tags["pid"])).create_time()
        return abs(started - int(tags["pid_started"])) < 2
    except (KeyError, ValueError, psutil.Error):
        return False


def _is_silent(run: Any) -> bool:
    # No public attribute has the times of the last points.
    times = [run.info.start_time, *(metric.timestamp for metric in run.data._metric_objs)]
    return bool(time.time() - max(times) / 1000 > SILENCE_S)
