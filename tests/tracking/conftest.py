"""A repository with a real, empty SQLite store, which is created once and copied: creating takes seconds."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection import params as parameters
from detection.params import Params
from detection.tracking.run import Run
from detection.tracking.store import import_mlflow

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"training_id": "abc", "torch": "2.15.0"}
STEPS = 50
START_MS = 1_700_000_000_000
LOCK = """
schema: '2.0'
stages:
  prepare:
    cmd: exec python -m stages.prepare
    outs:
      - {path: data/prepared/train.npz, hash: md5, md5: '11111111111111111111111111111111', size: 1}
      - {path: data/prepared/val.npz, hash: md5, md5: '22222222222222222222222222222222', size: 1}
      - {path: data/prepared/test.npz, hash: md5, md5: '33333333333333333333333333333333', size: 1}
"""
VARIABLES: tuple[str, ...] = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "DETECTION_TRACKING")
VARIABLES += ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")

Curves = dict[str, list[tuple[int, int, float]]]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    client.search_experiments()
    return folder


@pytest.fixture
def bare_repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository without a store; the working directory and DVC_ROOT."""
    repo = tmp_path / "repo"
    (repo / ".dvc").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", repo], check=True)
    shutil.copy(ROOT / "params.yaml", repo)
    shutil.copy(ROOT / "dvc.yaml", repo)
    (repo / "dvc.lock").write_text(LOCK)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(repo)
    return repo


@pytest.fixture
def repo(bare_repo: Path, empty_store: Path) -> Path:
    for file in empty_store.glob("mlflow.db*"):
        shutil.copy(file, bare_repo)
    return bare_repo


@pytest.fixture
def params() -> Params:
    return parameters.load(ROOT / "params.yaml")


@pytest.fixture
def client(repo: Path) -> Any:
    return import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{repo}/mlflow.db")


@pytest.fixture
def runs(client: Any) -> Callable[[], list[Any]]:
    """All runs of the store, oldest first."""

    def search() -> list[Any]:
        experiments = [one.experiment_id for one in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))

    return search


@pytest.fixture
def write_losses() -> Callable[[Path, int], None]:
    """Write `losses.csv` with the steps 1 to `last`."""

    def write(reports: Path, last: int, start_ms: int = START_MS) -> None:
        lines = ["step,epoch,time,lr,loss,classification,boxes"]
        for step in range(1, last + 1):
            lines.append(f"{step},{step / 25},{start_ms + step},0.01,{3 / step},{2 / step},{1 / step}")
        (reports / "train").mkdir(parents=True, exist_ok=True)
        (reports / "train/losses.csv").write_text("\n".join(lines) + "\n")

    return write


@pytest.fixture
def train(repo: Path, write_losses: Callable[[Path, int], None]) -> Callable[..., None]:
    """Write the reports of a training; the run gets the curves up to a step."""

    def write(run: Run, until: int = STEPS) -> None:
        reports, folder = repo / "reports", repo / "reports/train"
        write_losses(reports, until)
        run.update(until)
        if until < STEPS:  # the server dies here
            run.close("KILLED")
            write_losses(reports, STEPS)
        (folder / "metrics.csv").write_text(f"epoch,step,time,AP,AP_small\n2,50,{START_MS + 1000},0.5,nan\n")
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
        (folder / "recipe.json").write_text('{"model": "m", "dataset": "d", "seed": 7, "recipe": {"a": {"b": 1}}}')
        detector = repo / "models" / "detector.pt"
        detector.parent.mkdir(exist_ok=True)
        detector.write_bytes(b"weights")
        evaluation = repo / "reports" / "evaluation"
        (evaluation / "tables").mkdir(parents=True, exist_ok=True)
        (evaluation / "metrics.json").write_text('{"AP": 0.4}')

    return write


@pytest.fixture
def curves() -> Callable[[Any, str], Curves]:
    """Every training curve of a run: step, time and value of each point."""

    def read(client: Any, run_id: str) -> Curves:
        others = ("system/", "test/", "speed/")
        names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(others)]
        return {
            name: [(one.step, one.timestamp, one.value) for one in client.get_metric_history(run_id, name)]
            for name in names
        }

    return read


@pytest.fixture(autouse=True)
def _all_runs_closed() -> Iterator[None]:
    """A test that does not close its run would leak the background thread."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "tracking"]


@pytest.fixture
def closed_port() -> int:
    """A port of this machine without a server."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
