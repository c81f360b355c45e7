"""Logging of the stages and `detection sync`: `train` opens a run, `evaluate` and `plots` complete it."""

import importlib.util
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from detection.tracking.artifacts import Artifacts, files_below
from detection.tracking.client import (
    EVALUATION_KEY,
    FORKED_FROM,
    REPLACES,
    TRAINING_ID,
    find_run,
    find_training,
    read_run_id,
    write_run_id,
)
from detection.tracking.dataset_inputs import split_digest
from detection.tracking.logged_model import fill, find_or_create, link, log_start_model, model_of, tolerate_old_server
from detection.tracking.run import MlflowRun, NoRun, OpenRun, Run
from detection.tracking.store import Store, close_orphans, connect, display_uri, failure, lock_path, switched_off
from detection.tracking.uploader import Uploader, log_points

log = logging.getLogger(__name__)
Result = TypeVar("Result")

RUN_METRICS = EVALUATION_TABLES / "mlflow_metrics.json"
"""Test metrics that `evaluate` logs, by metric name."""
NOTE = "mlflow.note.content"
"""Tag that MLflow shows as description."""
MAX_NOTE_LENGTH = 5000
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
        # An evaluated run keeps its experiment's name: a recipe of the same content but another name reuses the
        # training, and has a run of its own for its evaluation.
        client.reopen(store, run, rename=EVALUATION_KEY not in run.data.tags)
    client.describe(store, run, params, {})
    log_start_model(store, run, params)
    write_run_id(TRAIN_RUN_JSON, run.info.run_id)
    log.info("MLflow run %s (%s) at %s", client.run_name(params), run.info.run_id, display_uri())
    return store.client, run.info.run_id


def log_training_artifacts(run: Run) -> None:
    """Store a training's reports and sample images, the dataset card, and the detector as a LoggedModel."""
    for path, folder in _training_files():
        run.artifact(path, folder)
    run.transfer(_send_model)


def _send_model(mlflow_client: Any, run_id: str, artifacts: Artifacts) -> None:
    run = mlflow_client.get_run(run_id)
    store = Store(mlflow_client, run.info.experiment_id, mlflow_client.tracking_uri)
    model = _link_model(store, run, contested=False)
    if model is not None:
        fill(store, model, files.DETECTOR, _example(), artifacts.progress)


def _link_model(store: Store, run: Any, *, contested: bool = True) -> Any:
    """LoggedModel of the detector in this workspace, linked to a run; None without a detector, or on an old server.

    With `contested`, another clone may create it too.
    """
    model = None
    if files.DETECTOR.is_file():
        with tolerate_old_server("the detector is a file of its run instead"):
            training_id = read_json(REPORTS_TRAIN / "environment.json").get(TRAINING_ID)
            with files.locked(lock_path()):
                model = find_or_create(store, run, files.DETECTOR, training_id, contested=contested)
            link(store, run, model, int(read_json(REPORTS_TRAIN / "metrics.json").get("steps") or 0))
    return model


def _example() -> bytes | None:
    """Image file of the test split, the model's input example; None if the images are not on this machine."""
    folder = read_json(files.PREPARED / "meta.json").get("path", "")
    for image in read_json(files.PREPARED / "test_coco.json").get("images", [])[:1]:
        file: Path = files.data_root() / folder / image["file_name"]
        if file.is_file():
            return file.read_bytes()
    return None


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
        run, points = _repeat_on_conflict(lambda: _log_evaluation(connect(), params))
        log.info("MLflow run %s: evaluation and %d missing points sent", run.info.run_id, points)
    if read_run_id(EVALUATION_RUN_JSON) is None:
        write_run_id(EVALUATION_RUN_JSON, uuid.uuid4().hex, unsent=True)


def _log_evaluation(store: Store, params: Params) -> tuple[Any, int]:
    run = _adopt_or_fork(store, params)
    write_run_id(EVALUATION_RUN_JSON, run.info.run_id)  # at once: its files may fail
    return run, _finish(store, run, params)


def log_figures(params: Params) -> None:
    """Store the figures, the report page and the model card in the evaluation's run.

    What the run lacks of training and evaluation, since the server was down, is sent too.
    """
    if read_run_id(EVALUATION_RUN_JSON) and not switched_off():
        with _continue_on_failure("the figures are not in MLflow; `detection sync` sends them"):
            _repeat_on_conflict(lambda: _sync(connect(), params))


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
        return _repeat_on_conflict(lambda: _sync(connect(), params, fill_gaps=True))
    except TrackingError:
        raise
    except Exception as error:  # MLflow raises errors of any type
        raise TrackingError(f"{failure(error)}; run `detection sync` again when it is back") from None


def _sync(store: Store, params: Params, *, fill_gaps: bool = False) -> SyncResult:
    metrics = _scores()
    run = _find_evaluation(store, params) if metrics else _find_or_create_training(store, params)
    missing = any(run.data.metrics.get(name) != value for name, value in metrics.items())
    if _is_finished(run) and not missing:
        points = sum(Uploader(store.client, run.info.run_id, fill_gaps=fill_gaps).send())
        run = store.client.get_run(run.info.run_id)
        _send_files(store, run, _link_model(store, run), bool(metrics), only_missing=True)
    else:
        points = _finish(store, run, params, fill_gaps=fill_gaps)
    plots = [*files_below(files.REPORTS_PLOTS, "plots"), (files.REPORT_PAGE, "plots"), (files.MODEL_CARD, None)]
    Artifacts(store.client, run.info.artifact_uri).send_all(plots)
    _describe_by_card(store, run)
    return SyncResult(run.info.run_id, points, missing)


def _scores() -> dict[str, float]:
    """Test metrics of the detector in this workspace; empty if it was not evaluated since it was trained."""
    scored = read_json(files.EVALUATED_JSON).get("detector")
    if scored and files.DETECTOR.is_file() and scored != files.md5(files.DETECTOR):
        log.warning(
            "%s was trained again after its evaluation: its scores are left out; run `dvc repro`", files.DETECTOR
        )
        return {}
    return read_json(RUN_METRICS)


def _describe_by_card(store: Store, run: Any) -> None:
    """Show the head of the model card as the description of the run, and of the model that the run trained."""
    if not files.MODEL_CARD.is_file():
        return
    head = files.MODEL_CARD.read_text(encoding="utf-8").split("\n| class")[0].strip()[:MAX_NOTE_LENGTH]
    store.client.set_tag(run.info.run_id, NOTE, head)
    with tolerate_old_server("no model gets the card"):
        model = model_of(store, run.info.run_id)
        if model is not None and not client.is_fork(run):
            store.client.set_logged_model_tags(model.model_id, {NOTE: head})
            Artifacts(store.client, model.artifact_location).send(files.MODEL_CARD)


def _find_or_create_training(store: Store, params: Params) -> Any:
    environment, run_id = read_json(REPORTS_TRAIN / "environment.json"), read_run_id(TRAIN_RUN_JSON)
    with files.locked(lock_path()):
        run = find_training(store, run_id, environment.get(TRAINING_ID))
        if run is None:
            tags = client.environment_tags(environment) | _replaces(run_id)
            return client.create_run(store, params, "train", tags, TRAINING_ID if TRAINING_ID in tags else None)
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

    Two evaluations at once do not adopt the same run, also not from two clones.

    Args:
        store: The store.
        params: The experiment.
        replaces: Run id in `run.json` that the store does not have.
        fork: The evaluation's run was not the training's, which is left to another evaluation.
    """
    key, environment = pipeline.evaluation_key(params), read_json(REPORTS_TRAIN / "environment.json")
    with files.locked(lock_path()):
        while True:
            trained = find_training(store, read_run_id(TRAIN_RUN_JSON), environment.get(TRAINING_ID))
            is_own = trained is not None and not fork and client.claim(store, trained, key)
            run = trained if is_own else client.find_by_tag(store, EVALUATION_KEY, key)
            tags = {EVALUATION_KEY: key} | _replaces(replaces)
            if run is not None:
                client.reopen(store, run, tags)
                return run
            tags |= client.environment_tags(environment)
            if trained or fork:
                tags.pop(TRAINING_ID, None)
            if trained:
                tags[FORKED_FROM] = trained.info.run_id
            unique = TRAINING_ID if TRAINING_ID in tags else EVALUATION_KEY
            run = client.create_run(store, params, "evaluate", tags, unique)
            if client.claim(store, run, key):
                return run  # else another clone has created the training's run for its own evaluation


def _finish(store: Store, run: Any, params: Params, *, fill_gaps: bool = False) -> int:
    """Log what a run lacks of the training and the evaluation in this workspace, and end it as FINISHED.

    Returns:
        Number of points of the curves that were sent.
    """
    run_id, logged = run.info.run_id, run.data.metrics
    scored_at = int(read_json(files.EVALUATED_JSON).get("time") or time.time() * 1000)  # the same from every clone
    trained, metrics = _is_finished(run), _scores()
    recipe = {} if trained else read_json(REPORTS_TRAIN / "recipe.json")
    recorded = client.as_text(flatten({key: recipe[key] for key in RECORDED_PARAMS if key in recipe}))
    client.describe(store, run, params, recorded, evaluated=bool(metrics))
    run = store.client.get_run(run_id)
    if not client.is_fork(run):
        log_start_model(store, run, params)
    model, digest = _link_model(store, run), split_digest("test")
    linked = {"model_id": model.model_id} if model else {}
    linked |= {"dataset_name": params.dataset, "dataset_digest": digest} if model and digest else {}
    new = [(name, value, scored_at, 0) for name, value in metrics.items() if logged.get(name) != value]
    log_points(store.client, run_id, [point for point in new if point[0].startswith("test/")], **linked)
    log_points(store.client, run_id, [point for point in new if not point[0].startswith("test/")])
    points = sum(Uploader(store.client, run_id, fill_gaps=fill_gaps).send())
    try:
        _send_files(store, run, model, bool(metrics), only_missing=False)
    finally:  # a run whose files fail has its values, and ends
        store.client.set_terminated(run_id, "FINISHED")
    return points


def _send_files(store: Store, run: Any, model: Any, evaluated: bool, *, only_missing: bool) -> None:
    """Send the files of the training, of the evaluation, and the detector.

    Args:
        store: The store.
        run: The run.
        model: LoggedModel of the detector; None on a server without them.
        evaluated: Send those of the evaluation.
        only_missing: Leave out the files of the evaluation that are there; those of the training are always left out.
    """
    artifacts = Artifacts(store.client, run.info.artifact_uri)
    artifacts.send_all(_training_files(), only_missing=True)
    own: list[tuple[Path, str | None]] = [(PARAMS_YAML, None)]
    if evaluated:
        own += [*files_below(REPORTS_EVALUATION, "evaluation"), (files.DVC_LOCK, None)]
        own += [(files.DETECTOR, "models")] if model is None else []
    artifacts.send_all(own, only_missing=only_missing)
    if model is not None:
        fill(store, model, files.DETECTOR, _example())


def _training_files() -> list[tuple[Path, str | None]]:
    """Reports of a training that its run stores, and the artifact folder of each."""
    folders = (REPORTS_TRAIN, REPORTS_TRAIN / "samples", files.REPORTS_DATASET)
    return [(path, folder.name) for folder in folders for path in sorted(folder.glob("*")) if path.is_file()]


def _replaces(run_id: str | None) -> dict[str, str]:
    return {REPLACES: run_id} if run_id else {}


def _is_finished(run: Any) -> bool:
    return bool(run.info.status == "FINISHED")


def _repeat_on_conflict(call: Callable[[], Result]) -> Result:
    """Call again if another clone has logged the same param or input into the same run between reading and writing."""
    for _ in range(2):
        try:
            return call()
        except Exception as error:  # MLflow passes on the database's
            if not any(word in str(error) for word in ("IntegrityError", "UniqueViolation", "Duplicate entry")):
                raise
    return call()


@contextmanager
def _continue_on_failure(consequence: str) -> Iterator[None]:
    """Log a failure of MLflow as a warning; a `TrackingError`, a wrong configuration, is raised."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # MLflow raises errors of any type
        log.warning("%s; %s", failure(error), consequence)
