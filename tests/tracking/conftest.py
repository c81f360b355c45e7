"""A repository with a real, empty SQLite store: made once, then copied (making one takes seconds)."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection import params as parameters
from detection.params import Params
from detection.tracking.run import Run
from detection.tracking.store import import_mlflow

ROOT = Path(__file__).resolve().parents[2]
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
VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "DETECTION_TRACKING")
VARIABLES += ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    client.search_experiments()
    return folder


@pytest.fixture
def bare_repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose store nobody has made yet; the working directory and DVC_ROOT."""
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
def rows(client: Any) -> Callable[[], list[Any]]:
    """All rows of the store, oldest first."""

    def search() -> list[Any]:
        experiments = [one.experiment_id for one in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))

    return search


@pytest.fixture
def train(repo: Path) -> Callable[[Run], None]:
    """Fill a row as the loop does: the curves go to `reports/train`, then to the row."""

    def fill(row: Run) -> None:
        folder = repo / "reports" / "train"
        losses = ["step,epoch,time,lr,loss,classification,boxes"]
        for step in range(1, 51):
            values = {"loss": 3 / step, "lr": 0.01, "loss/classification": 2 / step, "loss/boxes": 1 / step}
            row.log(step, values, 1_700_000_000_000 + step)
            losses.append(
                f"{step},{step / 25},{1_700_000_000_000 + step},0.01,{3 / step},{2 / step},{1 / step}"
            )
        (folder / "losses.csv").write_text("\n".join(losses) + "\n")
        row.log(50, {"val/AP": 0.5, "val/AP_small": float("nan"), "epoch": 2}, 1_700_000_001_000)
        (folder / "metrics.csv").write_text("epoch,step,time,AP,AP_small\n2,50,1700000001000,0.5,nan\n")
        (folder / "recipe.json").write_text(
            '{"model": "m", "dataset": "d", "seed": 7, "recipe": {"a": {"b": 1}}}'
        )
        detector = repo / "models" / "detector.pt"
        detector.parent.mkdir(exist_ok=True)
        detector.write_bytes(b"weights")
        evaluation = repo / "reports" / "evaluation"
        evaluation.mkdir(parents=True, exist_ok=True)
        (evaluation / "metrics.json").write_text('{"AP": 0.4}')

    return fill


@pytest.fixture(autouse=True)
def _no_monitor_left_behind() -> Iterator[None]:
    """System metrics are sampled by a thread; a test that forgets to close its row would leak it."""
    import threading

    yield
    left = [thread.name for thread in threading.enumerate() if thread.name in ("tracking", "machine")]
    assert not left, left


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
