"""The run of an evaluation: the training's run, a fork of it, or a run created from the reports."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.files import EVALUATION_RUN_JSON, TRAIN_RUN_JSON
from detection.params import Params
from detection.tracking.client import EVALUATION_KEY, write_run_id
from detection.tracking.lifecycle import log_evaluation, log_figures, open_run
from detection.tracking.run import Run

Runs = Callable[[], list[Any]]
Train = Callable[[Run], None]
Curves = Callable[[Any, str], dict[str, list[tuple[int, int, float]]]]
SCORES = {"test/AP": 0.4, "test/AP_small": float("nan"), "test/AP/a (b)": 0.1}
SCORES |= {"test/AP/猫": 0.2, "test/AP/犬": 0.3}


@pytest.fixture
def trained(params: Params, repo: Path, train: Train) -> str:
    """A finished training; returns its run's id."""
    with open_run(params, {"training_id": "abc"}) as run:
        train(run)
    assert run.id is not None
    return run.id


def other_settings(params: Params) -> Params:
    return replace(params, evaluate=replace(params.evaluate, score_threshold=0.3))


def evaluated() -> str:
    return str(json.loads(EVALUATION_RUN_JSON.read_text())["run_id"])


def test_the_first_evaluation_is_adopted(params: Params, trained: str, runs: Runs, client: Any) -> None:
    log_evaluation(params, SCORES)
    (only,) = runs()
    assert evaluated() == trained == only.info.run_id
    assert only.info.status == "FINISHED"
    assert only.data.metrics["test/AP"] == 0.4
    assert only.data.metrics["test/AP/a _b_"] == 0.1
    assert (only.data.metrics["test/AP/猫"], only.data.metrics["test/AP/犬"]) == (0.2, 0.3)
    assert "test/AP_small" not in only.data.metrics
    assert only.data.params["evaluate.score_threshold"] == "null"
    assert only.data.params.keys() - params.flat().keys() == {EVALUATION_KEY}
    paths = {entry.path for entry in client.list_artifacts(trained)}
    assert {"dvc.lock", "params.yaml", "evaluation"} <= paths
    assert ("test", "3" * 32) in {(i.tags[0].value, i.dataset.digest) for i in only.inputs.dataset_inputs}


def test_the_same_evaluation_again_stays_in_the_run(params: Params, trained: str, runs: Runs) -> None:
    log_evaluation(params, SCORES)
    log_evaluation(params, SCORES)
    assert len(runs()) == 1


def test_other_settings_fork_a_complete_run(
    params: Params, trained: str, runs: Runs, client: Any, curves: Curves
) -> None:
    Path("reports/train/recipe.json").unlink()  # the toy recipe; the run's params are those of params.yaml
    log_evaluation(params, SCORES)
    log_evaluation(other_settings(params), {"test/AP": 0.3})
    first, fork = runs()
    assert first.info.run_id == trained
    assert evaluated() == fork.info.run_id
    assert (first.data.metrics["test/AP"], fork.data.metrics["test/AP"]) == (0.4, 0.3)
    assert fork.data.tags["forked_from"] == trained
    assert fork.info.status == "FINISHED"
    own = {key: fork.data.params[key] for key in (EVALUATION_KEY, "evaluate.score_threshold")}
    assert fork.data.params == first.data.params | own
    assert own["evaluate.score_threshold"] == "0.3"
    assert curves(client, fork.info.run_id) == curves(client, trained)
    log_evaluation(other_settings(params), {"test/AP": 0.3})
    assert len(runs()) == 2, "the fork is found again"


@pytest.mark.parametrize("path", ["models/detector.pt", "detection/evaluation/protocol/coco_metrics.py"])
def test_other_weights_or_code_fork_too(params: Params, trained: str, runs: Runs, path: str) -> None:
    log_evaluation(params, SCORES)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("something else")
    log_evaluation(params, SCORES)
    assert len(runs()) == 2


@pytest.mark.parametrize("run_id", [None, "0" * 32])
def test_a_run_that_the_store_does_not_have_is_created_from_the_reports(
    params: Params, trained: str, runs: Runs, client: Any, curves: Curves, run_id: str | None
) -> None:
    before = curves(client, trained)
    client.delete_run(trained)
    write_run_id(TRAIN_RUN_JSON, run_id)
    log_evaluation(params, SCORES)
    (only,) = runs()
    assert curves(client, only.info.run_id) == before
    assert only.data.params["recipe.a.b"] == "1", "as recipe.json recorded it"
    assert only.data.params["seed"] == "7"
    assert only.data.metrics["test/AP"] == 0.4
    log_evaluation(params, SCORES)
    assert len(runs()) == 1, "and is found again"


def test_all_names_of_a_shared_run_are_kept(
    params: Params, trained: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first-name", "second-name"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        log_evaluation(params, SCORES)
    (only,) = runs()
    assert only.data.tags["dvc.exp_name"] == "second-name"
    assert only.data.tags["dvc.exp_names"] == "first-name,second-name"


def test_figures_go_to_the_run_of_the_evaluation(params: Params, trained: str, client: Any) -> None:
    log_evaluation(params, SCORES)
    figure = Path("reports/plots/losses.png")
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"png")
    Path("reports/index.html").write_text("<html>")
    log_figures(params)
    assert {one.path for one in client.list_artifacts(trained, "plots")} == {"plots/losses.png", "plots/index.html"}


def test_without_a_server_the_metrics_are_in_the_reports(
    params: Params, trained: str, closed_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    log_evaluation(params, SCORES)
    assert json.loads(EVALUATION_RUN_JSON.read_text())["unsent"] is True
    assert json.loads(Path("reports/evaluation/tables/mlflow_metrics.json").read_text())["test/AP"] == 0.4
    assert "the evaluation is not in MLflow" in caplog.text
    log_figures(params)


def test_with_tracking_off_no_run_is_created(
    params: Params, repo: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    log_evaluation(params, SCORES)
    log_figures(params)
    assert runs() == []
