"""A training opens its run, fills it, ends it and resumes it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.errors import DivergedError
from detection.files import TRAIN_RUN_JSON, WEIGHTS_JSON, write_json
from detection.params import Params
from detection.tracking.lifecycle import log_training_artifacts, open_run
from detection.tracking.run import NoRun, Run

Runs = Callable[[], list[Any]]
Train = Callable[[Run], None]
ENVIRONMENT = {"training_id": "abc", "torch": "2.15.0"}


def test_a_training_fills_one_run(repo: Path, params: Params, runs: Runs, client: Any, train: Train) -> None:
    with open_run(params, ENVIRONMENT) as run:
        assert json.loads(TRAIN_RUN_JSON.read_text()) == {"run_id": run.id}
        assert client.get_run(run.id).info.status == "RUNNING"
        train(run)
        log_training_artifacts(run)
        run.tag("note", "hello")
    (only,) = runs()
    assert only.info.run_id == run.id
    assert only.info.status == "FINISHED"
    assert only.info.run_name == f"{params.model}-{params.dataset}-nogit"
    assert only.data.params["recipe.optimizer.lr"] == str(params.recipe.optimizer.lr)
    assert only.data.params["train.clip_gradients"] == "null"
    assert not any(key.startswith("evaluate.") for key in only.data.params)
    assert len(only.data.params) == sum(not key.startswith("evaluate.") for key in params.flat())
    assert only.data.tags["note"] == "hello"
    assert only.data.tags["training_id"] == "abc"
    assert only.data.tags["env.torch"] == "2.15.0"
    assert only.data.tags["dvc.md5.data/prepared/train.npz"] == "1" * 32
    assert only.data.metrics["val/AP"] == 0.5
    assert "val/AP_small" not in only.data.metrics
    curve = client.get_metric_history(run.id, "loss/boxes")
    assert [(point.step, point.value) for point in curve] == [(step, 1 / step) for step in range(1, 51)]
    assert {entry.path for entry in client.list_artifacts(run.id, "train")} == {
        "train/losses.csv",
        "train/metrics.csv",
        "train/recipe.json",
        "train/environment.json",
    }
    inputs = {(one.dataset.name, one.tags[0].value): one.dataset.digest for one in only.inputs.dataset_inputs}
    assert inputs == {("shapes", "train"): "1" * 32, ("shapes", "val"): "2" * 32}
    artifacts = Path(only.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(repo / "mlartifacts")


def test_runs_that_start_from_one_detector_share_a_model_input(
    params: Params, runs: Runs, client: Any, train: Train
) -> None:
    with open_run(params, ENVIRONMENT) as source:
        train(source)
    start = {"from": "first", "type": "experiment", "md5": "4" * 32, "run_id": source.id}
    write_json(WEIGHTS_JSON, {"start": start})
    for training_id in ("two", "three", "three"):  # the last is a resume
        with open_run(params, ENVIRONMENT | {"training_id": training_id}) as run:
            train(run)
    first, *started = [client.get_run(run.info.run_id) for run in runs()]  # searches leave model inputs out
    assert not first.inputs.model_inputs
    (model,) = client.search_logged_models([first.info.experiment_id])
    assert (model.name, model.source_run_id, model.status) == (params.model, source.id, "READY")
    assert [one.model_id for run in started for one in run.inputs.model_inputs] == [model.model_id] * 2
    assert {run.data.tags["start.md5"] for run in started} == {"4" * 32}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DivergedError("the loss of step 7 is not finite"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_a_run_ends_as_its_training_ends(
    params: Params, runs: Runs, train: Train, error: BaseException, status: str
) -> None:
    def training() -> None:
        with open_run(params, ENVIRONMENT) as run:
            train(run)
            raise error

    with pytest.raises(type(error)):
        training()
    (only,) = runs()
    assert only.info.status == status
    assert only.data.metrics["loss"] == 3 / 50
    assert only.data.tags.get("error", "") == str(error)[: 100 * (status == "FAILED")]
    assert (Path(only.info.artifact_uri.removeprefix("file://")) / "params.yaml").is_file()
    open_run(params, ENVIRONMENT).close("FINISHED")
    (only,) = runs()
    assert only.info.status == "FINISHED"
    assert "error" not in only.data.tags, "the resumed training has finished"


def test_a_run_has_the_name_of_its_experiment(params: Params, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-cats")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789abcdef")
    open_run(params, ENVIRONMENT).close("FINISHED")
    (only,) = runs()
    assert only.info.run_name == "puffy-cats"
    assert only.data.tags["dvc.exp_name"] == "puffy-cats"
    assert only.data.tags["dvc.baseline_rev"] == "0123456789abcdef"


def test_a_run_leads_to_branch_and_remote_of_git(
    params: Params, repo: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=T", "-c", "user.email=t@localhost", *words]
        return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout.strip()

    git("checkout", "-qb", "augmentation")
    git("commit", "-qm", "first", "--allow-empty")
    git("remote", "add", "origin", "https://me:secret@github.com/team/detectors.git")
    git("checkout", "-q", "--detach")  # as DVC does while it runs an experiment
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", git("rev-parse", "HEAD"))
    open_run(params, ENVIRONMENT).close("FINISHED")
    (only,) = runs()
    assert only.data.tags["mlflow.source.git.branch"] == "augmentation"
    assert only.data.tags["mlflow.source.git.repoURL"] == "https://github.com/team/detectors.git"
    assert not [value for value in only.data.tags.values() if "secret" in value]


def test_a_resumed_training_reopens_its_run_and_adds_no_point_twice(
    params: Params, runs: Runs, client: Any, train: Train
) -> None:
    first = open_run(params, ENVIRONMENT)
    train(first)
    first.close("KILLED")
    with open_run(params, ENVIRONMENT) as second:
        train(second)
    (only,) = runs()
    assert only.info.run_id == second.id == first.id
    assert only.info.status == "FINISHED"
    assert len(client.get_metric_history(second.id, "loss")) == 50
    with open_run(params, ENVIRONMENT | {"training_id": "def"}) as fresh:
        assert fresh.id != first.id
    assert [run.info.run_id for run in runs()] == [first.id, fresh.id]


def test_a_deleted_run_is_created_again(params: Params, runs: Runs, client: Any, train: Train) -> None:
    first = open_run(params, ENVIRONMENT)
    train(first)
    first.close("KILLED")
    client.delete_run(first.id)
    with open_run(params, ENVIRONMENT) as second:
        train(second)
    (only,) = runs()
    assert only.info.run_id == second.id != first.id
    assert len(client.get_metric_history(second.id, "loss")) == 50


def test_tracking_can_be_switched_off(repo: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    run = open_run(params, ENVIRONMENT)
    assert isinstance(run, NoRun)
    assert json.loads(TRAIN_RUN_JSON.read_text()) == {"run_id": None}
    assert not (repo / "mlflow.db.lock").exists()


def test_a_server_that_is_down_costs_a_warning(
    repo: Path,
    params: Params,
    closed_port: int,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    run = open_run(params, ENVIRONMENT)
    assert run.id is None
    assert json.loads(TRAIN_RUN_JSON.read_text()) == {"run_id": None}
    (warning,) = [record.message for record in caplog.records if record.name.startswith("detection")]
    assert "does not answer" in warning
    train(run)
    run.close("FINISHED")
    assert "detection sync" in caplog.messages[-1]
