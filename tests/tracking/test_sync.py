"""What the store missed is sent later, exactly: by the next stage, or by `detection sync`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.errors import DataError, TrackingError
from detection.params import Params
from detection.tracking.client import RUN_JSON, write_run_id
from detection.tracking.figures import log_figures
from detection.tracking.opening import open_run
from detection.tracking.run import NoRun, Run
from detection.tracking.stages import EVALUATION_JSON, log_evaluation, recorded_scores
from detection.tracking.sync import sync_workspace

Rows = Callable[[], list[Any]]
Train = Callable[[Run], None]
Curves = dict[str, list[tuple[int, int, float]]]
MADE_IN = {"training": "abc", "torch": "2.15.0"}
STEPS = 50  # as conftest.py has them


def finish(train: Train, row: Run) -> None:
    """A training's reports; its points go to `row`."""
    train(row)
    Path("reports/train/environment.json").write_text(json.dumps(MADE_IN))
    Path("reports/train/metrics.json").write_text("{}")
    Path("reports/train/samples").mkdir()
    Path("reports/train/samples/epoch_002.png").write_bytes(b"png")
    scores = {"test/AP": 0.4, "test/AP/cat": 0.5, "speed/gflops": 7.0}
    Path("reports/evaluation/row.json").write_text(json.dumps(scores))


class Half(NoRun):
    """Passes on what comes before a step, as a row does whose server then dies."""

    def __init__(self, row: Run, until: int) -> None:
        self.row, self.until = row, until

    def log(self, step: int, values: Any, time_ms: int) -> None:
        if step < self.until:
            self.row.log(step, values, time_ms)


@pytest.fixture
def whole(params: Params, train: Train, client: Any) -> tuple[str, Curves]:
    """The row of a training that lost nothing, and its curves."""
    with open_run(params, made_in=MADE_IN) as row:
        finish(train, row)
    assert row.id is not None
    return row.id, curves(client, row.id)


@pytest.fixture
def cut_off(params: Params, train: Train, client: Any) -> str:
    """The row of a training whose server died; its process has gone since."""
    row = open_run(params, made_in=MADE_IN)
    finish(train, Half(row, until=31))
    row.close("KILLED")
    assert row.id is not None
    client.update_run(row.id, status="RUNNING")
    return row.id


def curves(client: Any, run_id: str) -> Curves:
    """All of a row's curves but what the machine was busy with."""
    others = ("system/", "test/", "speed/")
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(others)]
    return {
        name: [(one.step, one.timestamp, one.value) for one in client.get_metric_history(run_id, name)]
        for name in names
    }


def test_what_was_cut_off_is_sent_and_nothing_twice(
    params: Params, cut_off: str, client: Any, rows: Rows
) -> None:
    done = sync_workspace(params)
    missing = 4 * (STEPS - 30) + 2  # loss, lr and two terms of each step, AP and epoch
    assert (done.run_id, done.points, done.evaluated) == (cut_off, missing, True)
    (only,) = rows()
    assert only.info.status == "FINISHED"
    assert [step for step, _, _ in curves(client, cut_off)["loss"]] == list(range(1, STEPS + 1))
    assert (only.data.metrics["test/AP"], only.data.metrics["test/AP/cat"]) == (0.4, 0.5)
    files = {one.path for folder in (None, "samples") for one in client.list_artifacts(cut_off, folder)}
    assert {"train", "evaluation", "samples/epoch_002.png"} <= files
    again = sync_workspace(params)
    assert (again.points, again.evaluated) == (0, False)
    assert len(client.get_metric_history(cut_off, "test/AP")) == 1


def test_a_gap_in_the_middle_is_found_too(params: Params, whole: Any, client: Any, repo: Path) -> None:
    import sqlite3

    run_id, before = whole
    with sqlite3.connect(repo / "mlflow.db") as database:
        database.execute("DELETE FROM metrics WHERE step BETWEEN 11 AND 20")
    database.close()
    assert sync_workspace(params).points == 40
    assert {name: sorted(points) for name, points in curves(client, run_id).items()} == before


def test_the_next_stage_sends_what_is_missing(params: Params, cut_off: str, client: Any, rows: Rows) -> None:
    log_evaluation(params=params, metrics=recorded_scores())
    assert [row.info.run_id for row in rows()] == [cut_off]
    assert [step for step, _, _ in curves(client, cut_off)["loss"]] == list(range(1, STEPS + 1))


def test_a_row_on_an_emptied_store_is_as_the_lost_one(
    params: Params, whole: tuple[str, Curves], client: Any, rows: Rows, empty_store: Path, repo: Path
) -> None:
    log_evaluation(params=params, metrics=recorded_scores())
    (lost,) = rows()
    for file in repo.glob("mlflow.db*"):
        file.unlink()
    for file in empty_store.glob("mlflow.db*"):
        shutil.copy(file, repo)
    from mlflow import MlflowClient

    from detection.tracking.store import connect

    fresh: MlflowClient = connect().client
    done = sync_workspace(params)
    found = fresh.search_runs([connect().experiment])
    assert [row.info.run_id for row in found] == [done.run_id]
    (row,) = found
    assert row.info.status == "FINISHED"
    assert curves(fresh, row.info.run_id) == whole[1]
    assert row.data.metrics == lost.data.metrics
    assert row.data.params.keys() == lost.data.params.keys()
    assert row.data.tags["training"] == "abc"
    assert len(row.inputs.dataset_inputs) == len(lost.inputs.dataset_inputs) == 3
    sync_workspace(params)
    assert len(fresh.search_runs([connect().experiment])) == 1, "and is found again"


def test_an_experiment_that_was_evaluated_again_gets_its_own_row_and_no_other(
    params: Params, whole: tuple[str, Curves], rows: Rows, empty_store: Path, repo: Path, monkeypatch: Any
) -> None:
    again = replace(params, evaluate=replace(params.evaluate, score_threshold=0.3))
    log_evaluation(params=params, metrics=recorded_scores())
    base = EVALUATION_JSON.read_text()
    log_evaluation(params=again, metrics=recorded_scores())
    fork = EVALUATION_JSON.read_text()
    shutil.copy(empty_store / "mlflow.db", repo / "emptied.db")  # MLflow keeps a deleted database open
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{repo}/emptied.db")
    from detection.tracking.store import connect

    store, made = connect(), {}
    for number, (text, chosen) in enumerate(((fork, again), (base, params)), 1):
        EVALUATION_JSON.write_text(text)
        made[text] = sync_workspace(chosen).run_id
        found = {one.info.run_id: one for one in store.client.search_runs([store.experiment])}
        assert len(found) == number, "one experiment, one row"
        row = found[made[text]]
        assert row.data.tags["stands_for"] == json.loads(text)["run_id"]
        assert row.data.params["evaluate.score_threshold"] == json.dumps(chosen.evaluate.score_threshold)
        assert curves(store.client, made[text]) == whole[1]
        assert sync_workspace(chosen).run_id == made[text], "and is found again"
    assert "training" not in found[made[fork]].data.tags, "the training's own row is the first one's"
    assert found[made[base]].data.tags["training"] == "abc"


def test_plots_bring_what_evaluate_could_not(
    params: Params, cut_off: str, rows: Rows, client: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
        log_evaluation(params=params, metrics=recorded_scores())
    told = json.loads(EVALUATION_JSON.read_text())
    assert (len(told["run_id"]), told["unsent"]) == (32, True)
    Path("reports/index.html").write_text("<html>")
    log_figures(params)
    (only,) = rows()
    assert (only.info.run_id, only.info.status, only.data.metrics["test/AP"]) == (cut_off, "FINISHED", 0.4)
    assert only.data.tags["stands_for"] == told["run_id"], "so that the experiment leads to it"
    assert [one.path for one in client.list_artifacts(cut_off, "plots")] == ["plots/index.html"]


def test_without_a_server_or_a_training_it_says_so(
    params: Params, repo: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no finished training"):
        sync_workspace(params)
    write_run_id(RUN_JSON, None)
    Path("reports/train/metrics.json").write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(TrackingError, match=r"does not answer \(.*refused.*detection sync"):
        sync_workspace(params)
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    with pytest.raises(TrackingError, match="DETECTION_TRACKING is off"):
        sync_workspace(params)
