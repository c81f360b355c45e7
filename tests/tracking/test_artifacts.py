"""Files reach a store over slow connections; what a proxy refuses costs nothing else."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection.params import Params
from detection.tracking import artifacts as artifacts_module
from detection.tracking.artifacts import Artifacts, Progress, files_below
from detection.tracking.lifecycle import log_evaluation, log_training_artifacts, open_run, sync_workspace
from detection.tracking.run import Run
from tests.tracking.artifact_server import ArtifactServer, serving

Runs = Callable[[], list[Any]]
Train = Callable[[Run], None]


@pytest.fixture
def server(tmp_path: Path, client: Any) -> Iterator[ArtifactServer]:
    """Server of the files of the store's experiment."""
    with serving(tmp_path / "artifacts") as server:
        client.create_experiment("detection", artifact_location=server.uri)
        yield server


@pytest.fixture
def run_id(client: Any, server: ArtifactServer) -> str:
    experiment = client.get_experiment_by_name("detection")
    return str(client.create_run(experiment.experiment_id).info.run_id)


def of_run(client: Any, run_id: str, progress: Progress | None = None) -> Artifacts:
    return Artifacts(client, client.get_run(run_id).info.artifact_uri, progress)


def test_a_large_file_over_a_slow_connection_arrives_once(
    client: Any, run_id: str, server: ArtifactServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy passes a file on when it has all of it: much later than a metric may take."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.block_s, server.confirm_s = 0.02, 2.0
    file = tmp_path / "detector.pt"
    file.write_bytes(bytes(range(256)) * 8192)
    with pytest.raises(Exception, match=r"timeout|Connection"):
        client.log_artifact(run_id, str(file), "models")  # MLflow's own upload
    time.sleep(2.5)
    server.received.clear()
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1000")  # of 500 MB and more, around the server
    progress = Progress()
    of_run(client, run_id, progress).send(file, "models")
    (path,) = server.received
    assert (server.folder / path).read_bytes() == file.read_bytes()
    assert progress.count >= file.stat().st_size / 65536, "who waits sees that it moves"


def test_a_stuck_connection_is_an_error(
    client: Any, run_id: str, server: ArtifactServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(artifacts_module, "CONFIRM_TIMEOUT_S", 0.2)
    server.confirm_s = 1.5
    (tmp_path / "a.txt").write_text("a")
    artifacts = of_run(client, run_id)
    with pytest.raises(Exception, match=r"timed out|timeout"):
        artifacts.send(tmp_path / "a.txt")
    assert artifacts.refused == []


def test_only_missing_and_changed_files_are_sent(
    client: Any, run_id: str, server: ArtifactServer, tmp_path: Path
) -> None:
    folder = tmp_path / "reports"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.csv", "b.csv", "inner/c.csv"):
        (folder / name).write_text(name)
    files = [*files_below(folder, "train"), (folder / "nowhere.csv", None)]
    of_run(client, run_id).send_all(files)
    assert [path.partition("artifacts/")[2] for path in server.received] == [
        "train/a.csv", "train/b.csv", "train/inner/c.csv",
    ]  # fmt: skip
    server.received.clear()
    (folder / "b.csv").write_text("longer")
    of_run(client, run_id).send_all(files, only_missing=True)
    assert [path.partition("artifacts/")[2] for path in server.received] == ["train/b.csv"]


def test_what_a_proxy_refuses_costs_nothing_else(
    repo: Path,
    params: Params,
    runs: Runs,
    client: Any,
    train: Train,
    server: ArtifactServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """nginx refuses bodies above 1 MB by default."""
    server.limit = 1_000_000
    with open_run(params, {"training_id": "abc"}) as run:
        train(run)
        (repo / "models/detector.pt").write_bytes(b"w" * 1_500_000)
        (repo / "reports/train/metrics.json").write_text("{}")
        log_training_artifacts(run)
    log_evaluation(params, {"test/AP": 0.4})
    (only,) = runs()
    assert only.info.status == "FINISHED"
    assert only.data.metrics["test/AP"] == 0.4
    assert any(path.endswith("train/losses.csv") for path in server.received)
    assert any(path.endswith("/code/detection.zip") for path in server.received)
    warnings = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert all("detector.pt (1.5 MB)" in one and "HTTP 413" in one for one in warnings)
    assert all("client_max_body_size" in one and "detection sync" in one for one in warnings)
    assert 1 <= len(warnings) <= 2, "once by each stage"
    (model,) = client.search_logged_models([only.info.experiment_id])
    assert model.status == "FAILED"

    server.limit = 10**9
    server.received.clear()
    sync_workspace(params)
    assert client.get_logged_model(model.model_id).status == "READY"
    assert [path for path in server.received if path.endswith("detector.pt")]
    assert len(server.received) < 10, "only what was missing"
    server.received.clear()
    sync_workspace(params)
    assert server.received == []


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (PermissionError(13, "Permission denied"), True),
        (ModuleNotFoundError("No module named 'boto3'"), True),
        (ConnectionError("no route to host"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_errors_of_other_stores(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, refused: bool
) -> None:
    (tmp_path / "a.txt").write_text("a")
    artifacts = Artifacts(client, (tmp_path / "store").as_uri())

    def fail(path: str, folder: str | None) -> None:
        raise error

    monkeypatch.setattr(artifacts._repository, "log_artifact", fail)
    if refused:
        artifacts.send(tmp_path / "a.txt", "x")
        assert artifacts.refused == ["x/a.txt"]
    else:
        with pytest.raises(type(error)):
            artifacts.send(tmp_path / "a.txt", "x")


@pytest.mark.parametrize(("status", "refused"), [(403, True), (413, True), (429, False), (503, False)])
def test_an_object_store_refuses_by_status(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, refused: bool
) -> None:
    (tmp_path / "a.txt").write_text("a")
    artifacts = Artifacts(client, (tmp_path / "store").as_uri())
    cause = ValueError("AccessDenied")
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]  # botocore's form

    def fail(path: str, folder: str | None) -> None:
        raise RuntimeError("upload failed") from cause

    monkeypatch.setattr(artifacts._repository, "log_artifact", fail)
    try:
        artifacts.send(tmp_path / "a.txt")
    except RuntimeError:
        assert not refused
    assert bool(artifacts.refused) == refused
