"""Open a training's row, or go on with the one that an interrupted training left."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection.errors import TrackingError
from detection.params import Params
from detection.tracking import facts
from detection.tracking.live import LiveRow, reason
from detection.tracking.row import NullRow, Row
from detection.tracking.store import (
    Store,
    close_orphans,
    connect,
    import_mlflow,
    process_tags,
    switched_off,
    tracking_uri,
)

log = logging.getLogger(__name__)

RUN_JSON = Path("reports/train/run.json")
PARAMS_PER_CALL = 100  # MLflow refuses more
SPLITS = ("train", "val")


def open_row(params: Params, *, out: Path = RUN_JSON, resume: str | None = None, stage: str = "train") -> Row:
    """Open the row of this experiment and write its id to `out` for the stages that follow.

    Where the store cannot be reached the training goes on with a `NullRow`; `evaluate` then builds the row
    from `reports/train`.

    Args:
        params: The experiment; everything but `evaluate` is logged (`evaluate` logs that itself).
        out: Where the id goes, as `{"run_id": ...}`.
        resume: Id of the row to go on with, out of a checkpoint. A row that is gone is made anew: log the
            whole history again in either case.
        stage: Whose row it is.

    Raises:
        TrackingError: The store is configured in a way that can never work.
    """
    row = _open(params, resume, stage)
    write_run_id(out, row.id)
    return row


def log_training_artifacts(
    row: Row, train: Path = Path("reports/train"), dataset: Path = Path("reports/dataset")
) -> None:
    """Store the curves and the recipe, and the dataset's card and figures, in the row."""
    for path in facts.training_files(train, dataset):
        row.artifact(path, path.parent.name)


def write_run_id(path: Path, run_id: str | None) -> None:
    """Write `{"run_id": ...}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")


def read_run_id(path: Path) -> str | None:
    """The id that `write_run_id` wrote; None without a row."""
    try:
        run_id = json.loads(path.read_text(encoding="utf-8")).get("run_id")
    except FileNotFoundError:
        return None
    return str(run_id) if run_id else None


def new_row(
    store: Store, params: Params, stage: str, tags: Mapping[str, str], trained: Mapping[str, str]
) -> str:
    """Make a row with its name, params, tags and dataset inputs; returns its id.

    Args:
        store: The store.
        params: The experiment, all but `evaluate`.
        stage: Who makes the row.
        tags: More tags.
        trained: Params as a training recorded them, where `params` may have changed since.
    """
    everything = facts.origin_tags(params, stage) | process_tags() | dict(tags)
    run = store.client.create_run(store.experiment, run_name=facts.row_name(params), tags=everything)
    run_id: str = run.info.run_id
    values = facts.row_params(params) | dict(trained)
    add_params(store, run_id, {key: values[key] for key in values if not key.startswith("evaluate.")})
    add_datasets(store, run_id, params, SPLITS)
    return run_id


def find_row(store: Store, run_id: str | None) -> Any:
    """The row, or None where the store does not know it or it was deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        row = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return row if row.info.lifecycle_stage == "active" else None


def reopen(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set a row RUNNING in this process's name."""
    store.client.update_run(run_id, status="RUNNING")
    add_tags(store, run_id, process_tags() | dict(tags))


def add_tags(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call."""
    from mlflow.entities import RunTag

    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def add_params(store: Store, run_id: str, params: Mapping[str, str]) -> None:
    """Log the params that the row does not have yet; MLflow never changes one."""
    from mlflow.entities import Param

    there = store.client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in there]
    for start in range(0, len(new), PARAMS_PER_CALL):
        store.client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])


def add_datasets(store: Store, run_id: str, params: Params, splits: tuple[str, ...]) -> None:
    """Log the splits as dataset inputs, with DVC's md5 of the packed index as the digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    md5 = facts.locked_md5()
    inputs = []
    for split in splits:
        path = f"data/prepared/{split}.npz"
        if digest := md5.get(path):
            source = json.dumps({"path": params.data.path, "format": params.data.format})
            dataset = Dataset(name=params.dataset, digest=digest, source_type="local", source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    if inputs:
        store.client.log_inputs(run_id, datasets=inputs)


def _open(params: Params, resume: str | None, stage: str) -> Row:
    if switched_off():
        log.info("DETECTION_TRACKING=off: this training gets no MLflow row")
        return NullRow()
    try:
        import_mlflow()
    except ModuleNotFoundError:
        log.warning("mlflow is not installed: this training gets no row")
        return NullRow()
    try:
        store = connect()
        close_orphans(store)
        resumed = find_row(store, resume)
        if resumed is None:
            run_id = new_row(store, params, stage, tags={}, trained={})
        else:
            run_id = resumed.info.run_id
            reopen(store, run_id, {})
        log.info("MLflow row %s (%s) at %s", facts.row_name(params), run_id, store.uri)
        return LiveRow(store, run_id, resumed=resumed is not None)
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way, and the training goes on
        log.warning(
            "MLflow at %s does not answer (%s): training goes on without a row, "
            "`evaluate` makes it from reports/train when it is back",
            tracking_uri(),
            reason(error),
        )
        return NullRow()
