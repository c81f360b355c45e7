"""Opening a training's row, filling it, ending it, and going on with it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.errors import DivergedError, TrackingError
from detection.params import Params
from detection.tracking.client import RUN_JSON
from detection.tracking.opening import log_training_artifacts, open_run
from detection.tracking.run import NoRun, Run
from detection.tracking.store import close_orphans, connect, tracking_uri

ROOT = Path(__file__).resolve().parents[2]
Rows = Callable[[], list[Any]]
Train = Callable[[Run], None]


def test_a_training_fills_one_row(repo: Path, params: Params, rows: Rows, client: Any, train: Train) -> None:
    with open_run(params) as row:
        assert json.loads(RUN_JSON.read_text()) == {"run_id": row.id}
        assert client.get_run(row.id).info.status == "RUNNING"
        train(row)
        log_training_artifacts(row)
        row.tag("note", "hello")
    (only,) = rows()
    assert only.info.run_id == row.id
    assert only.info.status == "FINISHED"
    assert only.info.run_name == f"{params.model}-{params.dataset}-nogit"
    assert only.data.params["recipe.optimizer.lr"] == str(params.recipe.optimizer.lr)
    assert only.data.params["train.clip_gradients"] == "null"
    assert not any(key.startswith("evaluate.") for key in only.data.params)
    assert len(only.data.params) == sum(not key.startswith("evaluate.") for key in params.flat())
    assert only.data.tags["note"] == "hello"
    assert only.data.tags["dvc.md5.data/prepared/train.npz"] == "1" * 32
    assert only.data.metrics["val/AP"] == 0.5
    assert "val/AP_small" not in only.data.metrics
    curve = client.get_metric_history(row.id, "loss/boxes")
    assert [(point.step, point.value) for point in curve] == [(step, 1 / step) for step in range(1, 51)]
    assert {entry.path for entry in client.list_artifacts(row.id, "train")} == {
        "train/losses.csv",
        "train/metrics.csv",
        "train/recipe.json",
    }
    inputs = {(one.dataset.name, one.tags[0].value): one.dataset.digest for one in only.inputs.dataset_inputs}
    assert inputs == {("shapes", "train"): "1" * 32, ("shapes", "val"): "2" * 32}
    artifacts = Path(only.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(repo / "mlartifacts")


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_a_row_ends_as_its_training_ends(
    params: Params, rows: Rows, error: BaseException, status: str
) -> None:
    def training() -> None:
        with open_run(params) as row:
            row.log(1, {"loss": 1.0}, 1)
            raise error

    with pytest.raises(type(error)):
        training()
    (only,) = rows()
    assert only.info.status == status
    assert only.data.metrics["loss"] == 1.0
    assert (Path(only.info.artifact_uri.removeprefix("file://")) / "params.yaml").is_file()


def test_the_row_bears_the_experiments_name(
    params: Params, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-cats")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789abcdef")
    open_run(params).close("FINISHED")
    (only,) = rows()
    assert only.info.run_name == "puffy-cats"
    assert only.data.tags["dvc.exp_name"] == "puffy-cats"
    assert only.data.tags["dvc.baseline_rev"] == "0123456789abcdef"


def test_a_resumed_training_goes_on_in_its_row_and_adds_no_point_twice(
    params: Params, rows: Rows, client: Any, train: Train
) -> None:
    first = open_run(params)
    train(first)
    first.close("KILLED")
    with open_run(params, resume=first.id) as second:
        train(second)
    (only,) = rows()
    assert only.info.run_id == second.id == first.id
    assert only.info.status == "FINISHED"
    assert len(client.get_metric_history(second.id, "loss")) == 50


def test_a_row_that_is_gone_is_made_anew(params: Params, rows: Rows, client: Any) -> None:
    first = open_run(params)
    first.close("KILLED")
    client.delete_run(first.id)
    second = open_run(params, resume=first.id)
    second.close("FINISHED")
    third = open_run(params, resume="0" * 32)
    third.close("FINISHED")
    assert {row.info.run_id for row in rows()} == {second.id, third.id}
    assert second.id != first.id


def test_rows_of_dead_processes_are_closed(params: Params, client: Any, repo: Path) -> None:
    code = (
        "import os; from detection import params; from detection.tracking.opening import open_row\n"
        "row = open_row(params.load()); print(row.id, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout.split()[-1]
    assert client.get_run(killed).info.status == "RUNNING"
    row = open_run(params)
    assert client.get_run(killed).info.status == "KILLED"
    close_orphans(connect())
    assert client.get_run(row.id).info.status == "RUNNING"
    row.close("FINISHED")


def test_four_first_users_at_once_share_one_store(bare_repo: Path) -> None:
    code = (
        "from detection import params; from detection.tracking.opening import open_row\n"
        "row = open_row(params.load()); row.log(1, {'loss': 1.0}, 1); row.close('FINISHED'); print(row.id)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    four = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(4)
    ]
    ids = set()
    for process in four:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        ids.add(out.split()[-1])
    store = connect()
    found = store.client.search_runs([store.experiment])
    assert {row.info.run_id for row in found} == ids
    assert all(row.info.status == "FINISHED" and row.data.metrics["loss"] == 1.0 for row in found)
    assert len(ids) == 4
    assert len(store.client.search_experiments()) == 2  # MLflow's own Default and ours


def test_a_temporary_workspace_writes_to_the_main_repository(
    repo: Path, params: Params, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(repo))
    open_run(params).close("FINISHED")
    assert len(rows()) == 1
    assert sorted(path.name for path in workspace.iterdir()) == ["reports"]


def test_a_relative_store_hangs_on_dvc_root(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/somewhere")
    assert tracking_uri() == "sqlite:////somewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///rows/own.db")
    assert tracking_uri() == "sqlite:////somewhere/rows/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/own.db")
    assert tracking_uri() == "sqlite:////elsewhere/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri() == "http://server:5000"


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns", "sqlite://"])
def test_a_store_that_mlflow_no_longer_writes_to_is_refused(
    repo: Path, params: Params, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        open_run(params)


def test_a_deleted_experiment_is_named_with_its_mend(repo: Path, params: Params, client: Any) -> None:
    open_run(params).close("FINISHED")
    client.delete_experiment(client.get_experiment_by_name("detection").experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore -x"):
        open_run(params)


def test_tracking_can_be_switched_off(repo: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    row = open_run(params)
    assert isinstance(row, NoRun)
    assert json.loads(RUN_JSON.read_text()) == {"run_id": None}
    assert not (repo / "mlflow.db.lock").exists()


def test_a_dead_server_costs_a_warning(
    repo: Path,
    params: Params,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    started = time.monotonic()
    row = open_run(params)
    assert time.monotonic() - started < 15
    assert row.id is None
    assert json.loads(RUN_JSON.read_text()) == {"run_id": None}
    (warning,) = [record.message for record in caplog.records if record.name.startswith("detection")]
    assert "does not answer" in warning
    row.log(1, {"loss": 1.0}, 1)
    row.close("FINISHED")
    assert time.monotonic() - started < 30
    assert "detection sync" in caplog.messages[-1]


def test_a_row_whose_id_was_lost_is_found_by_its_training(params: Params, rows: Rows) -> None:
    made_in = {"training": "abc", "torch": "2.15.0"}
    first = open_run(params, made_in=made_in)
    first.close("KILLED")  # before a checkpoint could save its id
    second = open_run(params, made_in=made_in)
    second.close("FINISHED")
    fresh = open_run(params, made_in=made_in | {"training": "def"})
    fresh.close("FINISHED")
    assert second.id == first.id
    assert [row.info.run_id for row in rows()] == [first.id, fresh.id]
    assert rows()[0].data.tags["env.torch"] == "2.15.0"


def test_an_error_stands_in_the_row(params: Params, rows: Rows) -> None:
    def training() -> None:
        with open_run(params):
            raise DivergedError("the loss of step 7 is not finite")

    with pytest.raises(DivergedError):
        training()
    assert rows()[0].data.tags["error"] == "the loss of step 7 is not finite"
