"""Logging of the stages and `detection sync`: `train` opens a run, `evaluate` and `plots` complete it."""

import importlib.util
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detection import files, pipeline
from detection.errors import DataError, TrackingError
from detection.files import (
    EVALUATION_RUN_JSON,
    EVALUATION_TABLES,
    PARAMS_YAML,
    REPORTS_EVALUATION,
    REPORTS_TRAIN,
    TRAIN_RUN_JSON,
    read_json,
)
from detection.params import Params
from detection.text import flatten
from detection.tracking import client
from detection.tracking.client import REPLACES, TRAINING_ID, find_run, find_training, read_run_id, write_run_id
from detection.tracking.run import MlflowRun, NoRun, OpenRun, Run
from detection.tracking.store import Store, close_orphans, connect, display_uri, failure, lock_path, switched_off
from detection.tracking.uploader import Uploader, log_points

log = logging.getLogger(__name__)

RUN_METRICS = EVALUATION_TABLES / "mlflow_metrics.json"
"""Test metrics that `evaluate` logs, by metric name."""
EVALUATION_KEY = "evaluation_key"
"""Tag: hash of the settings, code and weights of the evaluation that a run holds."""
RECORDED_PARAMS = ("model", "dataset", "seed", "recipe")
"""Keys of a training's `recipe.json`."""


@dataclass(frozen=True, slots=True)
class SyncResult:
    """Result of `detection sync`."""

    run_id: str
    """The run that is up to date now."""
    points: int
    """Number of points of the training's curves that were missing."""
    evaluated: bool
    """True if the evaluation was missing."""


def open_run(params: Params, environment: Mapping[str, str]) -> Run:
    """Open the run of a training and write its id to `reports/train_run.json`.

    A resumed training reopens its run. If the server is down, training continues and the run is created when
    the server is back; after the end of the training by `evaluate` or `detection sync`.

    Args:
        params: The experiment; all params but `evaluate` are logged.
        environment: Content of `environment.json`; its `training_id` finds the run of a resumed training.

    Raises:
        TrackingError: The store cannot be used as configured.
    """
    write_run_id(TRAIN_RUN_JSON, None)
    if switched_off():
        log.info("DETECTION_TRACKING=off: no MLflow run for this training")
        return NoRun()
    if importlib.util.find_spec("mlflow") is None:
        log.warning("mlflow is not installed: no MLflow run for this training")
        return NoRun()
    open_training, opened = partial(_open_training, params, environment), None
    with _continue_on_failure("training continues, its run is created when the server is back"):
        opened = open_training()
    run = MlflowRun(open_training, opened)
    run.artifact(PARAMS_YAML, None)  # at once: an interrupted training is never evaluated
    return run


def _open_training(params: Params, environment: Mapping[str, str]) -> OpenRun:
    store = connect()
    close_orphans(store)
    run = find_training(store, None, environment.get(TRAINING_ID))
    if run is None:
        run = client.create_run(store, params, "train", client.environment_tags(environment))
    else:
        client.reopen(store, run)
    client.describe(store, run, params, {})
    write_run_id(TRAIN_RUN_JSON, run.info.run_id)
    log.info("MLflow run %s (%s) at %s", client.run_name(params), run.info.run_id, display_uri())
    return store.client, run.info.run_id


def log_training_artifacts(run: Run) -> None:
    """Store a training's reports and sample images, and the dataset card."""
    for path in _training_files():
        run.artifact(path, path.parent.name)


def log_evaluation(params: Params, metrics: Mapping[str, float]) -> None:
    """Log an evaluation, end its run as FINISHED, and write the run id to `reports/evaluation/run.json`.

    The training's run is adopted as long as it holds no other evaluation; curves that the training could not
    send are sent now. An evaluation with other settings, code or weights gets a new run (a fork) with the
    training's params and curves. If the server is down, a warning is logged and `run.json` gets an id that
    the run will replace.

    Args:
        params: The experiment.
        metrics: Test metrics by name: `test/AP`, `test/AP50`, `test/AP/<class>`. NaN is skipped.

    Raises:
        TrackingError: The store cannot be used as configured.
    """
    write_run_id(EVALUATION_RUN_JSON, None)
    files.write_json(RUN_METRICS, client.finite(metrics))
    if switched_off():
        return
    with _continue_on_failure("the evaluation is not in MLflow; `detection sync` sends it"):
        store = connect()
        run = _adopt_or_fork(store, params)
        write_run_id(EVALUATION_RUN_JSON, run.info.run_id)
        points = _finish(store, run, params)
        log.info("MLflow run %s: evaluation and %d missing points sent", run.info.run_id, points)
    if read_run_id(EVALUATION_RUN_JSON) is None:
        write_run_id(EVALUATION_RUN_JSON, uuid.uuid4().hex, unsent=True)


def log_figures(params: Params) -> None:
    """Store the figures, the report page and the model card in the evaluation's run.

    What the run lacks of training and evaluation, since the server was down, is sent too.
    """
    if read_run_id(EVALUATION_RUN_JSON) and not switched_off():
        with _continue_on_failure("the figures are not in MLflow; `detection sync` sends them"):
            _sync(connect(), params)


def sync_workspace(params: Params) -> SyncResult:
    """Send what the run of the experiment in this workspace lacks; create it if it is missing.

    Raises:
        DataError: The workspace has no finished training.
        TrackingError: The server does not answer, or tracking is off.
    """
    if switched_off():
        raise TrackingError("DETECTION_TRACKING is off: no run to send anything to; unset the variable")
    if not (REPORTS_TRAIN / "metrics.json").is_file():
        raise DataError(f"{REPORTS_TRAIN} has no finished training; run `dvc repro` or `dvc pull`")
    try:
        return _sync(connect(), params, fill_gaps=True)
    except TrackingError:
        raise
    except Exception as error:  # MLflow raises errors of any type
        raise TrackingError(f"{failure(error)}; run `detection sync` again when it is back") from None


def _sync(store: Store, params: Params, *, fill_gaps: bool = False) -> SyncResult:
    metrics = read_json(RUN_METRICS)
    run = _find_evaluation(store, params) if metrics else _find_or_create_training(store, params)
    missing = any(run.data.metrics.get(name) != value for name, value in metrics.items())
    if _is_finished(run) and not missing:
        points = sum(Uploader(store.client, run.info.run_id, fill_gaps=fill_gaps).send())
    else:
        points = _finish(store, run, params, fill_gaps=fill_gaps)
    if files.REPORTS_PLOTS.is_dir():
        store.client.log_artifacts(run.info.run_id, str(files.REPORTS_PLOTS), "plots")
    _log_files(store, run, (files.REPORT_PAGE, "plots"), (files.MODEL_CARD, None))
    return SyncResult(run.info.run_id, points, missing)


def _find_or_create_training(store: Store, params: Params) -> Any:
    environment, run_id = read_json(REPORTS_TRAIN / "environment.json"), read_run_id(TRAIN_RUN_JSON)
    run = find_training(store, run_id, environment.get(TRAINING_ID))
    if run is None:
        tags = client.environment_tags(environment) | _replaces(run_id)
        return client.create_run(store, params, "train", tags)
    if not _is_finished(run):
        client.reopen(store, run)
    return run


def _find_evaluation(store: Store, params: Params) -> Any:
    """Run of the evaluation in this workspace, and of no other: a training may be evaluated repeatedly."""
    train_id, run_id = read_run_id(TRAIN_RUN_JSON), read_run_id(EVALUATION_RUN_JSON)
    fork = run_id not in (None, train_id) and not client.is_unsent(EVALUATION_RUN_JSON)
    run = find_run(store, run_id)
    if run is None:
        run = _adopt_or_fork(store, params, replaces=run_id, fork=fork)
        run = store.client.get_run(run.info.run_id)  # RUNNING now
    return run


def _adopt_or_fork(store: Store, params: Params, *, replaces: str | None = None, fork: bool = False) -> Any:
    """Choose the run of an evaluation and set it RUNNING; returns the run as it was before.

    Holds a lock, so that two evaluations at once do not adopt the same run.

    Args:
        store: The store.
        params: The experiment.
        replaces: Run id in `run.json` that the store does not have.
        fork: The evaluation's run was not the training's, which is left to another evaluation.
    """
    key, environment = pipeline.evaluation_key(params), read_json(REPORTS_TRAIN / "environment.json")
    tags = {EVALUATION_KEY: key} | _replaces(replaces)
    with files.locked(lock_path()):
        trained = find_training(store, read_run_id(TRAIN_RUN_JSON), environment.get(TRAINING_ID))
        is_own = trained is not None and not fork and trained.data.tags.get(EVALUATION_KEY, key) == key
        run = trained if is_own else client.find_by_tag(store, EVALUATION_KEY, key)
        if run is not None:
            client.reopen(store, run, tags)
            return run
        tags |= client.environment_tags(environment)
        if trained or fork:
            tags.pop(TRAINING_ID, None)
        if trained:
            tags["forked_from"] = trained.info.run_id
        return client.create_run(store, params, "evaluate", tags)


def _finish(store: Store, run: Any, params: Params, *, fill_gaps: bool = False) -> int:
    """Log what a run lacks of the training and the evaluation in this workspace, and end it as FINISHED.

    Returns:
        Number of points of the curves that were sent.
    """
    run_id, logged, now = run.info.run_id, run.data.metrics, time.time_ns() // 1_000_000
    trained, metrics = _is_finished(run), read_json(RUN_METRICS)
    recipe = {} if trained else read_json(REPORTS_TRAIN / "recipe.json")
    recorded = client.as_text(flatten({key: recipe[key] for key in RECORDED_PARAMS if key in recipe}))
    client.describe(store, run, params, recorded, evaluated=bool(metrics))
    log_points(store.client, run_id, [(k, v, now, 0) for k, v in metrics.items() if logged.get(k) != v])
    points = sum(Uploader(store.client, run_id, fill_gaps=fill_gaps).send())
    if not trained:
        _log_files(store, run, *((path, path.parent.name) for path in _training_files()))
    _log_files(store, run, (PARAMS_YAML, None))
    if metrics:
        store.client.log_artifacts(run_id, str(REPORTS_EVALUATION), "evaluation")
        _log_files(store, run, (files.DVC_LOCK, None), (files.DETECTOR, "models"))
    store.client.set_terminated(run_id, "FINISHED")
    return points


def _log_files(store: Store, run: Any, *paths: tuple[Path, str | None]) -> None:
    """Store the files that exist, each in a folder of the run's artifacts or at their top."""
    for path, folder in paths:
        if path.is_file():
            store.client.log_artifact(run.info.run_id, str(path), folder)


def _training_files() -> list[Path]:
    """Reports of a training that its run stores, in artifact folders of the same names."""
    folders = (REPORTS_TRAIN, REPORTS_TRAIN / "samples", files.REPORTS_DATASET)
    return [path for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]


def _replaces(run_id: str | None) -> dict[str, str]:
    return {REPLACES: run_id} if run_id else {}


def _is_finished(run: Any) -> bool:
    return bool(run.info.status == "FINISHED")


@contextmanager
def _continue_on_failure(consequence: str) -> Iterator[None]:
    """Log a failure of MLflow as a warning; a `TrackingError`, a wrong configuration, is raised."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow raises errors of any type
        log.warning("%s; %s", failure(error), consequence)
