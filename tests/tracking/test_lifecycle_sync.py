"""Points that the server missed are sent later, each once: by the next stage, or by `detection sync`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.errors import DataError, TrackingError
from detection.files import DETECTOR, EVALUATED_JSON, EVALUATION_RUN_JSON, TRAIN_RUN_JSON, md5, write_json
from detection.params import Params
from detection.tracking.client import write_run_id
from detection.tracking.lifecycle import log_evaluation, log_figures, open_run, sync_workspace
from detection.tracking.run import Run

Runs = Callable[[], list[Any]]
Points = dict[str, list[tuple[int, int, float]]]
Curves = Callable[[Any, str], Points]
ENVIRONMENT = {"training_id": "abc", "torch": "2.15.0"}
STEPS = 50  # as in conftest.py
SCORES = {"test/AP": 0.4, "test/AP/cat": 0.5, "speed/gflops": 7.0}


@pytest.fixture
def finish(train: Callable[..., None]) -> Callable[..., None]:
    """Write the reports of a finished training and its evaluation; the run gets the curves up to a step."""

    def write(run: Run, until: int = STEPS) -> None:
        train(run, until)
        Path("reports/train/metrics.json").write_text("{}")
        Path("reports/train/samples").mkdir()
        Path("reports/train/samples/epoch_002.png").write_bytes(b"png")
        Path("reports/evaluation/tables/mlflow_metrics.json").write_text(json.dumps(SCORES))

    return write


@pytest.fixture
def complete(params: Params, finish: Callable[..., None], client: Any, curves: Curves) -> tuple[str, Points]:
    """Run id and curves of a training that lost nothing."""
    with open_run(params, ENVIRONMENT) as run:
        finish(run)
    assert run.id is not None
    return run.id, curves(client, run.id)


@pytest.fixture
def interrupted(params: Params, finish: Callable[..., None], client: Any) -> str:
    """Run id of a training whose server died after step 30; its process has ended since."""
    run = open_run(params, ENVIRONMENT)
    finish(run, 30)
    assert run.id is not None
    client.update_run(run.id, status="RUNNING")
    return run.id


def test_missing_points_are_sent_once(
    params: Params, curves: Curves, interrupted: str, client: Any, runs: Runs
) -> None:
    done = sync_workspace(params)
    missing = 4 * (STEPS - 30) + 2  # loss, lr and two terms of each step, AP and epoch
    assert (done.run_id, done.points, done.evaluated) == (interrupted, missing, True)
    (only,) = runs()
    assert only.info.status == "FINISHED"
    assert [step for step, _, _ in curves(client, interrupted)["loss"]] == list(range(1, STEPS + 1))
    assert (only.data.metrics["test/AP"], only.data.metrics["test/AP/cat"]) == (0.4, 0.5)
    files = {one.path for folder in (None, "samples") for one in client.list_artifacts(interrupted, folder)}
    assert {"train", "evaluation", "samples/epoch_002.png"} <= files
    again = sync_workspace(params)
    assert (again.points, again.evaluated) == (0, False)
    assert len(client.get_metric_history(interrupted, "test/AP")) == 1


def test_a_gap_in_the_middle_is_filled(params: Params, curves: Curves, complete: Any, client: Any, repo: Path) -> None:
    import sqlite3

    run_id, before = complete
    with sqlite3.connect(repo / "mlflow.db") as database:
        database.execute("DELETE FROM metrics WHERE step BETWEEN 11 AND 20")
    database.close()
    assert sync_workspace(params).points == 40
    assert {name: sorted(points) for name, points in curves(client, run_id).items()} == before


def test_the_next_stage_sends_what_is_missing(
    params: Params, curves: Curves, interrupted: str, client: Any, runs: Runs
) -> None:
    log_evaluation(params, SCORES)
    assert [run.info.run_id for run in runs()] == [interrupted]
    assert [step for step, _, _ in curves(client, interrupted)["loss"]] == list(range(1, STEPS + 1))


def test_a_run_on_an_emptied_store_equals_the_lost_one(
    params: Params, curves: Curves, complete: tuple[str, Points], client: Any, runs: Runs, empty_store: Path, repo: Path
) -> None:
    log_evaluation(params, SCORES)
    (lost,) = runs()
    for file in repo.glob("mlflow.db*"):
        file.unlink()
    for file in empty_store.glob("mlflow.db*"):
        shutil.copy(file, repo)
    from mlflow import MlflowClient

    from detection.tracking.store import connect

    fresh: MlflowClient = connect().client
    done = sync_workspace(params)
    present = fresh.search_runs([connect().experiment])
    assert [run.info.run_id for run in present] == [done.run_id]
    (run,) = present
    assert run.info.status == "FINISHED"
    assert curves(fresh, run.info.run_id) == complete[1]
    assert run.data.metrics == lost.data.metrics
    assert run.data.params.keys() == lost.data.params.keys()
    assert run.data.tags["training_id"] == "abc"
    assert len(run.inputs.dataset_inputs) == len(lost.inputs.dataset_inputs) == 3
    sync_workspace(params)
    assert len(fresh.search_runs([connect().experiment])) == 1, "and is found again"


def test_an_experiment_that_was_evaluated_again_gets_its_own_run_and_no_other(
    params: Params,
    curves: Curves,
    complete: tuple[str, Points],
    runs: Runs,
    empty_store: Path,
    repo: Path,
    monkeypatch: Any,
) -> None:
    again = replace(params, evaluate=replace(params.evaluate, score_threshold=0.3))
    log_evaluation(params, SCORES)
    base = EVALUATION_RUN_JSON.read_text()
    log_evaluation(again, SCORES)
    fork = EVALUATION_RUN_JSON.read_text()
    shutil.copy(empty_store / "mlflow.db", repo / "emptied.db")  # MLflow keeps a deleted database open
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{repo}/emptied.db")
    from detection.tracking.store import connect

    store, made = connect(), {}
    for number, (text, selected) in enumerate(((fork, again), (base, params)), 1):
        EVALUATION_RUN_JSON.write_text(text)
        made[text] = sync_workspace(selected).run_id
        present = {one.info.run_id: one for one in store.client.search_runs([store.experiment])}
        assert len(present) == number, "one experiment, one run"
        run = present[made[text]]
        assert run.data.tags["replaces_run"] == json.loads(text)["run_id"]
        assert run.data.params["evaluate.score_threshold"] == json.dumps(selected.evaluate.score_threshold)
        assert curves(store.client, made[text]) == complete[1]
        assert sync_workspace(selected).run_id == made[text], "and is found again"
    (model,) = store.client.search_logged_models([store.experiment])
    linked = {text: store.client.get_run(made[text]) for text in (fork, base)}
    assert [one.model_id for one in linked[fork].inputs.model_inputs] == [model.model_id]
    assert [one.model_id for one in linked[base].outputs.model_outputs] == [model.model_id]
    assert not linked[fork].outputs.model_outputs
    assert "training_id" not in present[made[fork]].data.tags, "the training's own run is the first one's"
    assert present[made[base]].data.tags["training_id"] == "abc"


def test_plots_sends_what_evaluate_could_not(
    params: Params, interrupted: str, runs: Runs, client: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
        log_evaluation(params, SCORES)
    recorded = json.loads(EVALUATION_RUN_JSON.read_text())
    assert (len(recorded["run_id"]), recorded["unsent"]) == (32, True)
    Path("reports/index.html").write_text("<html>")
    log_figures(params)
    (only,) = runs()
    assert (only.info.run_id, only.info.status, only.data.metrics["test/AP"]) == (interrupted, "FINISHED", 0.4)
    assert only.data.tags["replaces_run"] == recorded["run_id"], "so that the experiment leads to it"
    assert [one.path for one in client.list_artifacts(interrupted, "plots")] == ["plots/index.html"]


def test_scores_of_an_earlier_detector_are_not_sent_to_a_new_training(
    params: Params, complete: tuple[str, Points], client: Any, runs: Runs, finish: Callable[..., None], repo: Path
) -> None:
    """`dvc repro train`, then `detection sync`."""
    first, before = complete
    write_json(EVALUATED_JSON, {"detector": md5(DETECTOR)})
    log_evaluation(params, SCORES)
    shutil.rmtree(repo / "reports/train")
    with open_run(params, {"training_id": "def"}) as run:
        finish(run)
        DETECTOR.write_bytes(b"trained again")
        write_json("reports/train/environment.json", {"training_id": "def"})
    sync_workspace(params)
    assert [one.info.run_id for one in runs()] == [first, run.id]
    assert "test/AP" not in client.get_run(run.id).data.metrics
    assert len(client.get_metric_history(first, "loss")) == len(before["loss"]) == STEPS
    write_json(EVALUATED_JSON, {"detector": md5(DETECTOR)})
    log_evaluation(params, {"test/AP": 0.2})
    assert client.get_run(run.id).data.metrics["test/AP"] == 0.2
    assert client.get_run(first).data.metrics["test/AP"] == 0.4


def test_a_recipe_of_the_same_content_leaves_the_first_run_its_name(
    params: Params, complete: tuple[str, Points], client: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reuses the finished training, and its evaluation is a run of its own."""
    monkeypatch.setenv("DVC_EXP_NAME", "first")
    log_evaluation(params, SCORES)
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    open_run(params, ENVIRONMENT).close("FINISHED")
    Path("reports/train/recipe.json").write_text('{"model": "mine"}')
    log_evaluation(replace(params, evaluate=replace(params.evaluate, batch_size=7)), SCORES)
    first, mine = runs()
    assert (first.data.tags["dvc.exp_name"], mine.data.tags["dvc.exp_name"]) == ("first", "mine")


def test_without_a_server_or_a_training_it_is_an_error(
    params: Params, repo: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no finished training"):
        sync_workspace(params)
    write_run_id(TRAIN_RUN_JSON, None)
    Path("reports/train").mkdir()
    Path("reports/train/metrics.json").write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(TrackingError, match=r"does not answer \(.*refused.*detection sync"):
        sync_workspace(params)
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    with pytest.raises(TrackingError, match="DETECTION_TRACKING is off"):
        sync_workspace(params)
