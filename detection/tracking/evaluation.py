"""Bring an evaluation and its figures to the row of the training that it belongs to."""

import logging
from collections.abc import Mapping
from pathlib import Path

from detection.errors import TrackingError
from detection.locks import locked
from detection.params import Params
from detection.tracking import facts
from detection.tracking.live import reason
from detection.tracking.opening import (
    RUN_JSON,
    add_datasets,
    add_params,
    find_row,
    new_row,
    read_run_id,
    reopen,
    write_run_id,
)
from detection.tracking.replay import recorded_params, replay
from detection.tracking.store import Store, connect, import_mlflow, lock_path, switched_off, tracking_uri

log = logging.getLogger(__name__)

EVALUATION_JSON = Path("reports/evaluation/run.json")  # figures.py names it too
DONE = "done.evaluate"
DETECTOR = Path("models/detector.pt")


def log_evaluation(
    *,
    params: Params,
    metrics: Mapping[str, float],
    train_run: Path = RUN_JSON,
    out: Path = EVALUATION_JSON,
    artifacts: Path = Path("reports/evaluation"),
) -> None:
    """Log an evaluation to the row that fits it, end that row as FINISHED, and write its id to `out`.

    The training's row is *adopted* as long as it holds no other evaluation. With other settings, code or
    weights a new row is *forked*, with the training's params and whole curves, and so is one that the store
    does not know. A store that does not answer costs a warning; `out` then holds a null id.

    Args:
        params: The experiment.
        metrics: Test scores by name: `test/AP`, `test/AP50`, `test/AP/<class>`. NaN is skipped.
        train_run: Where `train` left its row's id.
        out: Where this row's id goes, for `plots`.
        artifacts: Folder of the evaluation's files.

    Raises:
        TrackingError: The store is configured in a way that can never work.
    """
    write_run_id(out, None)
    if switched_off():
        return
    try:
        import_mlflow()
        store = connect()
        run_id = _adopt_or_fork(store, params, read_run_id(train_run))
        write_run_id(out, run_id)
        _fill(store, run_id, params, metrics, artifacts)
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way, and the scores stand in the reports
        log.warning("the evaluation is not in MLflow: %s: %s", tracking_uri(), reason(error))


def _adopt_or_fork(store: Store, params: Params, train_id: str | None) -> str:
    """Choose the row under a lock, so that two evaluations at once do not adopt the same one."""
    key = facts.evaluation_key(params)
    with locked(lock_path()):
        row = find_row(store, train_id)
        if row is not None and row.data.tags.get(DONE, key) == key:
            reopen(store, row.info.run_id, {DONE: key} | _exp_tags(row.data.tags))
            return str(row.info.run_id)
        if same := store.client.search_runs([store.experiment], f"tags.`{DONE}` = '{key}'"):
            reopen(store, same[0].info.run_id, _exp_tags(same[0].data.tags))
            return str(same[0].info.run_id)
        origin = {"forked_from": train_id} if train_id is not None else {}
        trained = recorded_params() if row is None else row.data.params
        run_id = new_row(store, params, "evaluate", {DONE: key} | origin, trained)
    replay(store, run_id)
    log.info("a new MLflow row %s holds this evaluation beside the training's curves", run_id)
    return run_id


def _exp_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The newest experiment's name, and all the names that share the row."""
    before, now = tags.get("dvc.exp_name", ""), facts.experiment_name()
    if not now or now == before:
        return {}
    names = dict.fromkeys([*tags.get("dvc.exp_names", before).split(","), now])
    return {"dvc.exp_name": now, "dvc.exp_names": ",".join(name for name in names if name)}


def _fill(store: Store, run_id: str, params: Params, metrics: Mapping[str, float], artifacts: Path) -> None:
    client = store.client
    evaluate = {key: value for key, value in facts.row_params(params).items() if key.startswith("evaluate.")}
    add_params(store, run_id, evaluate)
    add_datasets(store, run_id, params, ("test",))
    for name, value in facts.finite(metrics).items():
        client.log_metric(run_id, name, value)
    client.log_artifacts(run_id, str(artifacts), "evaluation")
    for path, folder in ((Path("dvc.lock"), None), (Path("params.yaml"), None), (DETECTOR, "models")):
        if path.is_file():
            client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, "FINISHED")
