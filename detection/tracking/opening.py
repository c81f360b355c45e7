"""Open a training's row, or go on with the one that an interrupted training left."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from detection.errors import TrackingError, reason
from detection.params import Params
from detection.tracking import client, naming
from detection.tracking.client import (
    RUN_JSON,
    TRAINING,
    create_run,
    describe,
    experiment_tags,
    find_training,
    latest_steps,
    reopen,
    write_run_id,
)
from detection.tracking.live import MlflowRun, OpenRun
from detection.tracking.run import NoRun, Run
from detection.tracking.store import close_orphans, connect, import_mlflow, switched_off, tracking_uri

log = logging.getLogger(__name__)


def open_run(
    params: Params,
    *,
    out: Path = RUN_JSON,
    resume: str | None = None,
    made_in: Mapping[str, str] | None = None,
) -> Run:
    """Open the row of this experiment and write its id to `out` for the stages that follow.

    Where the store cannot be reached the training goes on, and the row is made as soon as the store is back;
    after the training's end by `evaluate`, or by `detection sync`.

    Args:
        params: The experiment; everything but `evaluate` is logged (`evaluate` logs that itself).
        out: Where the id goes, as `{"run_id": ...}`.
        resume: Id of the row to go on with, out of a checkpoint. A row that is gone is made anew: log the
            whole history again in either case.
        made_in: What `environment.json` says. Its `training` finds the row of a process that was killed
            before it could save the id.

    Raises:
        TrackingError: The store is configured in a way that can never work.
    """
    write_run_id(out, None)
    if switched_off():
        log.info("DETECTION_TRACKING=off: this training gets no MLflow row")
        return NoRun()
    try:
        import_mlflow()
    except ModuleNotFoundError:
        log.warning("mlflow is not installed: this training gets no row")
        return NoRun()
    opening, opened = partial(_open, params, out, resume, made_in or {}), None
    try:
        opened = opening()
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way, and the training goes on
        log.warning(
            "MLflow at %s does not answer (%s): training goes on, its row is made when it is back",
            tracking_uri(),
            reason(error),
        )
    row = MlflowRun(opening, opened)
    row.artifact(Path("params.yaml"), None)  # also where the training is cut off and never evaluated
    return row


def log_training_artifacts(
    row: Run, train: Path = Path("reports/train"), dataset: Path = Path("reports/dataset")
) -> None:
    """Store curves, recipe, environment and sample pictures in the row, and the dataset's card."""
    for path in client.training_files(train, train / "samples", dataset):
        row.artifact(path, path.parent.name)


def _open(params: Params, out: Path, resume: str | None, made_in: Mapping[str, str]) -> OpenRun:
    """Find the training's row or make it."""
    store = connect()
    close_orphans(store)
    row = find_training(store, resume, made_in.get(TRAINING))
    if row is None:
        run_id = create_run(store, params, "train", naming.environment_tags(made_in))
    else:
        run_id = row.info.run_id
        reopen(store, run_id, experiment_tags(row.data.tags))
    describe(store, run_id, params)
    write_run_id(out, run_id)
    log.info("MLflow row %s (%s) at %s", naming.run_name(params), run_id, store.uri)
    return OpenRun(store, run_id, latest_steps(row) if row else {})
