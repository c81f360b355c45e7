"""Fixtures: a repository with two real DVC experiments and their MLflow runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from detection.tracking.store import import_mlflow

ROOT = Path(__file__).resolve().parents[1]
DROPPED_VARIABLES = ("DVC_", "MLFLOW_", "DATA_ROOT", "DETECTION_TRACKING")
PIPELINE = """
stages:
  evaluate:
    cmd: exec python toy_stage.py
    deps: [toy_stage.py]
    params: [model, dataset, seed, "datasets.${dataset}"]
    outs:
      - data/prepared/train.npz
      - data/prepared/val.npz
      - data/prepared/test.npz
      - data/prepared/meta.json
      - data/prepared/test_listing.json
      - data/prepared/test_coco.json
      - models/detector.pt
      - reports/dataset
      - reports/train
      - reports/evaluation/tables
    metrics:
      - reports/evaluation/metrics.json: {cache: false}
      - reports/evaluation/run.json: {cache: false}
      - reports/train_run.json: {cache: false}
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Project:
    """A repository with the finished experiments `plain` and `better`."""

    folder: Path
    run: Run
    """Runs a command in the repository."""
    run_ids: dict[str, str]
    """MLflow run ids by experiment; `lost` is a run without an experiment."""


def _runner(folder: Path, site_cache: Path) -> Run:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED_VARIABLES)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DVC_SITE_CACHE_DIR": str(site_cache)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    def run(*command: str, ok: bool = True, run_id: str = "") -> "subprocess.CompletedProcess[str]":
        full = environment | ({"TOY_RUN_ID": run_id} if run_id else {})
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=full, timeout=300)
        if ok:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Created once, in half a minute; tests must not change it."""
    folder = tmp_path_factory.mktemp("experiments") / "project"
    run = _runner(folder, tmp_path_factory.mktemp("site-cache"))
    (folder / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore", ".dvcignore", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests/toy_stage.py", folder)
    (folder / "dvc.yaml").write_text(PIPELINE)
    _shrink(folder / "params.yaml")
    run("git", "init", "-q")
    run("git", "config", "user.name", "Tester")
    run("git", "config", "user.email", "tester@localhost")
    run("git", "add", ".")
    run("git", "commit", "-qm", "clone")
    head = run("git", "rev-parse", "HEAD").stdout.strip()
    run_ids = {name: _create_run(folder, name, head) for name in ("plain", "better", "lost")}
    run("dvc", "exp", "run", "-n", "plain", run_id=run_ids["plain"])
    run("dvc", "exp", "run", "-n", "better", "-S", "model=retinanet_resnet18", run_id=run_ids["better"])
    return Project(folder, run, run_ids)


@pytest.fixture
def project(finished_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The finished project as the current folder; changes of a test in the workspace are undone."""
    for name in [name for name in os.environ if name.startswith(DROPPED_VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(finished_project.folder)
    ref = next(one for one in finished_project.run("git", "show-ref").stdout.split() if one.endswith("/better"))
    if finished_project.run("git", "diff", "--quiet", ref, "--", ok=False).returncode:
        finished_project.run("dvc", "exp", "apply", "better")
    return finished_project


def _shrink(file: Path) -> None:
    yaml = YAML()
    document = yaml.load(file)
    document["datasets"]["shapes"] |= {"train": 4, "val": 2, "test": 24, "image_size": 64}
    yaml.dump(document, file)


def _create_run(folder: Path, name: str, head: str) -> str:
    """A run with the tags that lead back to its experiment, as `train` and `evaluate` create it."""
    client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("detection")
    number = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("detection", artifact_location=(folder / "mlartifacts").as_uri())
    )
    tags = {"dvc.exp_name": name, "dvc.baseline_rev": head, "mlflow.source.git.commit": head}
    run_id: str = client.create_run(number, run_name=name, tags=tags).info.run_id
    client.set_terminated(run_id, "FINISHED")
    return run_id
