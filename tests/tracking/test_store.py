"""Where runs are stored, and runs whose process has died."""

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from detection.errors import TrackingError
from detection.experiments.find import open_store
from detection.params import Params
from detection.tracking.lifecycle import open_run
from detection.tracking.store import (
    CLIENT_DEFAULTS,
    DRIVERS,
    SILENCE_S,
    artifact_root,
    close_orphans,
    connect,
    display_uri,
    failure,
    import_mlflow,
    lock_path,
    tracking_uri,
)

ROOT = Path(__file__).resolve().parents[2]
OPEN = "from detection import params; from detection.tracking.lifecycle import open_run\n"
OPEN += "run = open_run(params.load(), {}); print(run.id, flush=True)\n"


def python(code: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment)


def test_repositories_that_share_a_database_share_its_lock_and_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "one"))
    assert lock_path() == tmp_path / "one/mlflow.db.lock"
    assert artifact_root() == tmp_path / "one/mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert lock_path() == tmp_path / "one/mlflow.db.lock"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared/runs.db")
    lock = lock_path()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "two"))
    assert lock_path() == lock == tmp_path / "shared/runs.db.lock"
    assert artifact_root() == tmp_path / "shared/mlartifacts"


def test_a_relative_database_is_resolved_against_dvc_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", "/somewhere")
    assert tracking_uri() == "sqlite:////somewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/own.db")
    assert tracking_uri() == "sqlite:////somewhere/runs/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/own.db")
    assert tracking_uri() == "sqlite:////elsewhere/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri() == "http://server:5000"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:secret@server:5000/path", "https://***@server:5000/path"),
        ("postgresql+psycopg2://user:sec@ret@host/db", "postgresql+psycopg2://***@host/db"),
        (
            "postgresql://host/db?user=me&password=secret&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("http://server:5000", "http://server:5000"),
    ],
)
def test_messages_do_not_show_passwords(monkeypatch: pytest.MonkeyPatch, uri: str, shown: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert display_uri() == shown
    assert "secret" not in failure(OSError(f"cannot connect to {uri}"))


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses the credentials"), (403, "denies this user the access"), (500, "not answer")]
)
def test_a_refusal_of_the_server_is_named(
    repo: Path,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingError, match=message) as raised:
            open_store()
        open_run(params, {}).close("FINISHED")
        server.shutdown()
    assert message in caplog.text
    assert "secret" not in caplog.text + str(raised.value)


def test_a_database_without_a_place_for_files_is_refused(
    repo: Path, params: Params, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Artifacts of all users would go to the folder of the first one. `sqlite+pysqlite:` is refused as well."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite+pysqlite:///{repo}/mlflow.db")
    with pytest.raises(TrackingError, match=r"no artifacts.*mlflow server.*mlflow experiments create"):
        open_run(params, {})
    client.create_experiment("detection", artifact_location="file:///home/colleague/project/mlartifacts")
    with pytest.raises(TrackingError, match="a database stores no artifacts"):
        open_run(params, {})
    shared = tmp_path / "network/mlflow"
    shared.mkdir(parents=True)
    client.create_experiment("shared", artifact_location=shared.as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "shared")
    open_run(params, {}).close("FINISHED")
    assert list(shared.rglob("params.yaml"))


def test_a_moved_project_links_its_old_path(
    repo: Path, params: Params, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's database has absolute paths: files of new runs would go to the old one without a word."""
    open_run(params, {}).close("FINISHED")
    moved = tmp_path / "moved"
    repo.rename(moved)
    monkeypatch.chdir(moved)
    with pytest.raises(TrackingError, match=r"does not exist; after moving the project, link") as raised:
        open_run(params, {})
    command = str(raised.value).partition("old path: ")[2]
    subprocess.run(command, shell=True, check=True)
    open_run(params, {}).close("FINISHED")
    assert len(list((moved / "mlartifacts").rglob("params.yaml"))) == 2


def test_mlflow_prints_neither_links_nor_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import environment_variables as variables

    for name in CLIENT_DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    import_mlflow()
    assert variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get()
    assert not variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.get()


def test_a_missing_driver_of_the_database_is_named(repo: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me:secret@localhost/db")
    with pytest.raises(TrackingError, match="needs a driver: uv add psycopg2") as raised:
        open_run(params, {})
    assert "secret" not in str(raised.value)


def test_a_missing_driver_of_the_file_store_is_named(
    repo: Path, params: Params, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_experiment("detection", artifact_location="s3://bucket/mlflow")
    monkeypatch.setitem(DRIVERS, "s3", ("no_such_module", "boto3"))
    with pytest.raises(TrackingError, match="in s3: and need a driver: uv add boto3"):
        open_run(params, {})


def test_two_machines_that_create_the_mlflow_experiment_at_once_share_it(
    repo: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.create_experiment("detection", artifact_location=(repo / "mlartifacts").as_uri())
    find: Any = client.get_experiment_by_name
    calls: list[str] = []

    def late(self: Any, name: str) -> Any:
        calls.append(name)
        return find(name) if len(calls) > 1 else None

    monkeypatch.setattr(type(client), "get_experiment_by_name", late)
    assert connect().experiment == first


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns", "sqlite://"])
def test_a_store_that_mlflow_does_not_write_to_any_more_is_refused(
    repo: Path, params: Params, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        open_run(params, {})


def test_a_deleted_mlflow_experiment_is_an_error_with_the_fix(repo: Path, params: Params, client: Any) -> None:
    open_run(params, {}).close("FINISHED")
    client.delete_experiment(client.get_experiment_by_name("detection").experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore -x"):
        open_run(params, {})


def test_runs_of_dead_processes_are_killed(params: Params, client: Any, repo: Path) -> None:
    out, _ = python(OPEN + "import os; os.kill(os.getpid(), 9)").communicate(timeout=120)
    killed = out.split()[-1]
    assert client.get_run(killed).info.status == "RUNNING"
    run = open_run(params, {})
    assert client.get_run(killed).info.status == "KILLED"
    close_orphans(connect())
    assert client.get_run(run.id).info.status == "RUNNING"
    run.close("FINISHED")


def test_a_run_of_another_container_is_killed_only_when_it_has_been_silent(
    params: Params, client: Any, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host name may be the same, and its process id means nothing here."""
    run = open_run(params, {})
    client.set_tag(run.id, "machine", "another boot")
    client.set_tag(run.id, "pid", "1")
    store = connect()
    close_orphans(store)
    assert client.get_run(run.id).info.status == "RUNNING"
    later = time.time() + 2 * SILENCE_S
    monkeypatch.setattr("detection.tracking.store.time.time", lambda: later)
    client.log_metric(run.id, "loss", 1.0, timestamp=int(later * 1000) - 60_000, step=1)
    close_orphans(store)
    assert client.get_run(run.id).info.status == "RUNNING"
    later += SILENCE_S
    close_orphans(store)
    assert client.get_run(run.id).info.status == "KILLED"
    run.close("FINISHED")


def test_four_processes_that_open_a_new_store_at_once_share_it(bare_repo: Path) -> None:
    four = [python(OPEN + "run.close('FINISHED')") for _ in range(4)]
    ids = set()
    for process in four:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        ids.add(out.split()[-1])
    store = connect()
    runs = store.client.search_runs([store.experiment])
    assert {run.info.run_id for run in runs} == ids
    assert all(run.info.status == "FINISHED" for run in runs)
    assert len(ids) == 4
    assert len(store.client.search_experiments()) == 2  # MLflow's Default and ours


def test_a_temporary_workspace_writes_to_the_main_repository(
    repo: Path, params: Params, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(repo))
    open_run(params, {}).close("FINISHED")
    assert len(runs()) == 1
    assert sorted(path.name for path in workspace.iterdir()) == ["reports"]
