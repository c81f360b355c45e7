"""Bring a row up to what stands in `reports/`, whatever the store missed of it, or make it anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.errors import DataError, TrackingError
from detection.params import Params
from detection.tracking import facts
from detection.tracking.evaluation import DONE, REPORTS, adopt_or_fork, fill, recorded_scores
from detection.tracking.live import reason
from detection.tracking.replay import TRAIN, gaps, recorded_environment, recorded_params, replay
from detection.tracking.rows import (
    RUN_JSON,
    TRAINING,
    describe,
    experiment_tags,
    find_training,
    new_row,
    read_run_id,
    reopen,
)
from detection.tracking.store import Store, connect, import_mlflow, switched_off, tracking_uri

PLOTS, PAGE, CARD = Path("reports/plots"), Path("reports/index.html"), Path("reports/model_card.md")


@dataclass(frozen=True, slots=True)
class Synced:
    """What was done to a row."""

    run_id: str
    points: int
    """How many were missing of the training's curves."""
    evaluated: bool
    """Whether its evaluation was missing."""


def sync_workspace(params: Params) -> list[Synced]:
    """Send what the rows of the experiment in this workspace lack: the training's, and the evaluation's.

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
        return sync_rows(connect(), params)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {tracking_uri()} does not answer ({reason(error)}); "
            "say `detection sync` again when it is back"
        ) from None


def sync_rows(store: Store, params: Params) -> list[Synced]:
    """As `sync_workspace`, in an open store."""
    done = [_training(store, params)]
    if scores := recorded_scores():
        done = _evaluation(store, params, scores, done[0])
    log_figures_to(store, done[-1].run_id)
    return done


def log_figures_to(store: Store, run_id: str) -> None:
    """Store the figures, the page and the model card in a row, as far as they are there."""
    if PLOTS.is_dir():
        store.client.log_artifacts(run_id, str(PLOTS), "plots")
    if PAGE.is_file():
        store.client.log_artifact(run_id, str(PAGE), "plots")
    if CARD.is_file():
        store.client.log_artifact(run_id, str(CARD))


def _training(store: Store, params: Params) -> Synced:
    made_in = recorded_environment()
    row = find_training(store, read_run_id(RUN_JSON), made_in.get(TRAINING))
    if row is None:
        run_id = new_row(store, params, "train", facts.environment_tags(made_in))
    else:
        run_id = str(row.info.run_id)
        if _finished(row):
            return Synced(run_id, _points(store, run_id), False)
        reopen(store, run_id, experiment_tags(row.data.tags))
    describe(store, run_id, params, recorded_params())
    points = _points(store, run_id)
    store.client.set_terminated(run_id, "FINISHED")
    return Synced(run_id, points, False)


def _evaluation(store: Store, params: Params, scores: dict[str, float], training: Synced) -> list[Synced]:
    """The training's row and that of the evaluation, which are mostly one."""
    row = store.client.get_run(training.run_id)
    if row.data.tags.get(DONE) == facts.evaluation_key(params) and _finished(row) and _has(row, scores):
        return [training]
    run_id = adopt_or_fork(store, params, training.run_id)
    missing = not _has(store.client.get_run(run_id), scores)
    fill(store, run_id, params, scores, REPORTS)
    if run_id == training.run_id:
        return [Synced(run_id, training.points, missing)]
    return [training, Synced(run_id, _points(store, run_id), missing)]


def _points(store: Store, run_id: str) -> int:
    return replay(store, run_id, lacks=gaps(store, run_id))


def _finished(row: Any) -> bool:
    return bool(row.info.status == "FINISHED")


def _has(row: Any, scores: dict[str, float]) -> bool:
    return all(row.data.metrics.get(name) == value for name, value in facts.finite(scores).items())
