"""Bring a row up to what stands in `reports/`, whatever the store missed of it, or make it anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.errors import DataError, TrackingError, reason
from detection.params import Params
from detection.tracking import naming
from detection.tracking.client import (
    RUN_JSON,
    STANDS_FOR,
    TRAINING,
    create_run,
    experiment_tags,
    find_run,
    find_training,
    is_unsent,
    read_run_id,
    reopen,
)
from detection.tracking.replay import TRAIN, gaps, recorded_environment, replay
from detection.tracking.stages import (
    EVALUATION_JSON,
    REPORTS,
    adopt_or_fork,
    bring_training,
    fill,
    recorded_scores,
)
from detection.tracking.store import Store, connect, import_mlflow, switched_off, tracking_uri

PLOTS, PAGE, CARD = Path("reports/plots"), Path("reports/index.html"), Path("reports/model_card.md")


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What was done to a row."""

    run_id: str
    points: int
    """How many were missing of the training's curves."""
    evaluated: bool
    """Whether its evaluation was missing."""


def sync_workspace(params: Params) -> SyncResult:
    """Send what the row of the experiment in this workspace lacks; where there is none, make it.

    Raises:
        DataError: There is no finished training here.
        TrackingError: The store does not answer, or tracking is switched off.
    """
    if switched_off():
        raise TrackingError("DETECTION_TRACKING is off: there is no row to bring anything to; unset it")
    if not (TRAIN / "metrics.json").is_file():
        raise DataError(f"{TRAIN} holds no finished training; run `dvc repro`, or `dvc pull`")
    try:
        import_mlflow()
        return sync_run(connect(), params)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {tracking_uri()} does not answer ({reason(error)}); "
            "say `detection sync` again when it is back"
        ) from None


def sync_run(store: Store, params: Params) -> SyncResult:
    """As `sync_workspace`, in an open store."""
    scores = recorded_scores()
    done = _evaluation(store, params, scores) if scores else _training(store, params)
    log_figures_to(store, done.run_id)
    return done


def log_figures_to(store: Store, run_id: str) -> None:
    """Store the figures, the page and the model card in a row, as far as they are there."""
    if PLOTS.is_dir():
        store.client.log_artifacts(run_id, str(PLOTS), "plots")
    if PAGE.is_file():
        store.client.log_artifact(run_id, str(PAGE), "plots")
    if CARD.is_file():
        store.client.log_artifact(run_id, str(CARD))


def _training(store: Store, params: Params) -> SyncResult:
    made_in, lost = recorded_environment(), read_run_id(RUN_JSON)
    row = find_training(store, lost, made_in.get(TRAINING))
    if row is not None and _finished(row):
        return SyncResult(row.info.run_id, _points(store, row.info.run_id), False)
    if row is None:
        tags = naming.environment_tags(made_in) | ({STANDS_FOR: lost} if lost else {})
        run_id = create_run(store, params, "train", tags)
    else:
        run_id = str(row.info.run_id)
        reopen(store, run_id, experiment_tags(row.data.tags))
    points = bring_training(store, run_id, params, gaps(store, run_id))
    store.client.log_artifact(run_id, str(Path("params.yaml")))
    store.client.set_terminated(run_id, "FINISHED")
    return SyncResult(run_id, points, False)


def _evaluation(store: Store, params: Params, scores: dict[str, float]) -> SyncResult:
    """The row of the scores that stand here, and of no others: a training may have been evaluated twice."""
    train_id, own = read_run_id(RUN_JSON), read_run_id(EVALUATION_JSON)
    row = find_run(store, own)
    if row is None:
        fork = own not in (None, train_id) and not is_unsent(EVALUATION_JSON)
        run_id, _ = adopt_or_fork(store, params, train_id, lost_id=own, fork=fork)
        row = store.client.get_run(run_id)
    elif _finished(row) and _has(row, scores):
        return SyncResult(row.info.run_id, _points(store, row.info.run_id), False)
    run_id, missing = str(row.info.run_id), not _has(row, scores)
    points = bring_training(store, run_id, params, gaps(store, run_id))
    fill(store, run_id, params, scores, REPORTS)
    return SyncResult(run_id, points, missing)


def _points(store: Store, run_id: str) -> int:
    return replay(store, run_id, lacks=gaps(store, run_id))


def _finished(row: Any) -> bool:
    return bool(row.info.status == "FINISHED")


def _has(row: Any, scores: dict[str, float]) -> bool:
    return all(row.data.metrics.get(name) == value for name, value in naming.finite(scores).items())
