"""Bring an evaluation to the row of the training that it belongs to."""

import json
import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from detection import pipeline
from detection.errors import TrackingError, reason
from detection.files import locked
from detection.params import Params
from detection.tracking import naming
from detection.tracking.client import (
    RUN_JSON,
    STANDS_FOR,
    TRAINING,
    add_datasets,
    add_params,
    create_run,
    describe,
    experiment_tags,
    find_training,
    read_run_id,
    reopen,
    write_run_id,
)
from detection.tracking.live import METRICS_PER_CALL, log_points
from detection.tracking.replay import Lacks, recorded_environment, recorded_params, replay
from detection.tracking.store import Store, connect, import_mlflow, lock_path, switched_off, tracking_uri

log = logging.getLogger(__name__)

REPORTS = Path("reports/evaluation")
EVALUATION_JSON = REPORTS / "run.json"
ROW_JSON = "row.json"  # the numbers that the row gets, in the evaluation's folder
DONE = "done.evaluate"
DETECTOR = Path("models/detector.pt")


def log_evaluation(
    *,
    params: Params,
    metrics: Mapping[str, float],
    train_run: Path = RUN_JSON,
    out: Path = EVALUATION_JSON,
    artifacts: Path = REPORTS,
) -> None:
    """Log an evaluation to the row that fits it, end that row as FINISHED, and write its id to `out`.

    The training's row is *adopted* as long as it holds no other evaluation; what the training could not send
    is sent now. With other settings, code or weights a new row is *forked*, with the training's params and
    whole curves, and so is one that the store does not know. A store that does not answer costs a warning;
    `out` then holds an id that the row will stand for.

    Args:
        params: The experiment.
        metrics: Test scores by name: `test/AP`, `test/AP50`, `test/AP/<class>`. NaN is skipped. They are
            written to `row.json` in `artifacts` first.
        train_run: Where `train` left its row's id.
        out: Where this row's id goes, for `plots`.
        artifacts: Folder of the evaluation's files.

    Raises:
        TrackingError: The store is configured in a way that can never work.
    """
    write_run_id(out, None)
    artifacts.mkdir(parents=True, exist_ok=True)
    text = json.dumps(naming.finite(metrics), indent=2)
    (artifacts / ROW_JSON).write_text(text + "\n", encoding="utf-8")
    if switched_off():
        return
    try:
        import_mlflow()
        store = connect()
        run_id, trained = adopt_or_fork(store, params, read_run_id(train_run))
        write_run_id(out, run_id)
        if not trained:
            sent = bring_training(store, run_id, params)
            log.info("MLflow row %s: %d points of the training were missing and are there now", run_id, sent)
        fill(store, run_id, params, metrics, artifacts)
    except TrackingError:
        raise
    except Exception as error:  # a tracker may fail in any way, and the scores stand in the reports
        if read_run_id(out) is None:
            write_run_id(out, uuid.uuid4().hex, unsent=True)
        log.warning(
            "the evaluation is not in MLflow: %s: %s; `detection sync` brings it there",
            tracking_uri(),
            reason(error),
        )


def adopt_or_fork(
    store: Store, params: Params, train_id: str | None, *, lost_id: str | None = None, fork: bool = False
) -> tuple[str, bool]:
    """Choose an evaluation's row and set it RUNNING.

    It is chosen under a lock, so that two evaluations at once do not adopt the same one.

    Args:
        store: The store.
        params: The experiment.
        train_id: The training's row.
        lost_id: What files call the row, where the store does not know it by that id.
        fork: It was not the training's row; that one is left to the experiment that it belongs to.

    Returns:
        Its id, and whether it already holds the finished training.
    """
    key, made_in = pipeline.evaluation_key(params), recorded_environment()
    stands_for = {STANDS_FOR: lost_id} if lost_id else {}
    with locked(lock_path()):
        trained = find_training(store, train_id, made_in.get(TRAINING))
        row = trained if not fork and trained and trained.data.tags.get(DONE, key) == key else None
        if row is None:
            same = store.client.search_runs([store.experiment], f"tags.`{DONE}` = '{key}'")
            row = same[0] if same else None
        if row is not None:
            run_id = str(row.info.run_id)
            reopen(store, run_id, {DONE: key} | stands_for | experiment_tags(row.data.tags))
            return run_id, bool(row.info.status == "FINISHED")
        tags = {DONE: key} | stands_for | naming.environment_tags(made_in)
        if trained or fork:
            tags.pop(TRAINING, None)
        if trained:
            tags["forked_from"] = str(trained.info.run_id)
        return create_run(store, params, "evaluate", tags), False


def bring_training(store: Store, run_id: str, params: Params, lacks: Lacks | None = None) -> int:
    """Log the training's params, data, curves and files, as far as a row lacks them; see `replay`."""
    describe(store, run_id, params, recorded_params())
    return replay(store, run_id, lacks=lacks)


def fill(store: Store, run_id: str, params: Params, metrics: Mapping[str, float], artifacts: Path) -> None:
    """Log an evaluation's params, data, scores and files, and end its row as FINISHED."""
    client = store.client
    evaluate = {key: value for key, value in naming.run_params(params).items() if key.startswith("evaluate.")}
    add_params(store, run_id, evaluate)
    add_datasets(store, run_id, params, ("test",))
    there, now = client.get_run(run_id).data.metrics, time.time_ns() // 1_000_000
    points = [(k, v, now, 0) for k, v in naming.finite(metrics).items() if there.get(k) != v]
    for start in range(0, len(points), METRICS_PER_CALL):
        log_points(client, run_id, points[start : start + METRICS_PER_CALL])
    client.log_artifacts(run_id, str(artifacts), "evaluation")
    for path, folder in ((Path("dvc.lock"), None), (Path("params.yaml"), None), (DETECTOR, "models")):
        if path.is_file():
            client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, "FINISHED")


def recorded_scores(folder: Path = REPORTS) -> dict[str, float]:
    """What `evaluate` logged, or would have logged; empty where there is no evaluation."""
    path = folder / ROW_JSON
    scores: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return scores
