"""Clone of this repository at toy size, with real git and DVC, in which the whole pipeline takes a minute."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    *("detection", "stages", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"),
    *(".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvc/offline.html"),
)
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone of the repository with a dataset, a budget and a detector of toy size."""
    folder = tmp_path_factory.mktemp("pipeline") / "clone"
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    # An empty one: the pipeline of this checkout may have run.
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    shrink(folder / "params.yaml")
    for line in (
        "init -q",
        "config user.name Tester",
        "config user.email tester@localhost",
        "add .",
        "commit -qm clone",
    ):
        subprocess.run(["git", *line.split()], cwd=folder, check=True)
    return folder


def shrink(file: Path) -> None:
    """Set the smallest sizes at which every stage does all its work, and add a second model.

    Below 65 px the coarsest map is one pixel wide, and oneDNN's bf16 gradient of the stride-2 convolution
    above it contains uninitialized memory.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    document = yaml.load(file)
    document["dataset"] = "shapes"
    document["datasets"]["shapes"] |= {"train": 16, "val": 4, "test": 6, "image_size": 64}
    document["budgets"]["shapes"] = {"image_size": 96, "batch_size": 4, "epochs": 2}
    document["pretrain"] = {"method": "crops", "crops": {"image_size": 32, "epochs": 1, "batch_size": 16}}
    model = next(name for name, recipe in document["models"].items() if recipe["backbone"] == "resnet18")
    document["model"] = model
    sibling = dict(document["models"][model])
    sgd = {"optimizer": {"name": "sgd", "lr": 0.01}}  # in the overrides, as the preset replaces the recipe's optimizer
    overrides = sibling.get("overrides", {})
    sibling["overrides"] = {**overrides, "shapes": {**overrides.get("shapes", {}), **sgd}}
    document["models"]["sibling"] = sibling
    document["plots"] = {"sample_images": 2}
    yaml.dump(document, file)


@pytest.fixture(scope="session")
def command(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run a command in the clone as a user would, with the programs of this environment first in PATH."""
    removed = ("DVC_", "MLFLOW_", "DATA_ROOT", "DETECTION_TRACKING", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(removed)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["OMP_NUM_THREADS"] = "1"  # on a busy machine, threads that wait for each other take five times as long
    environment["DVC_SITE_CACHE_DIR"] = str(tmp_path_factory.mktemp("site-cache"))

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(words, cwd=copy, capture_output=True, text=True, env=environment, timeout=600)
        if check:
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def runs(copy: Path) -> Callable[[], list[Any]]:
    """MLflow runs in the clone's store, oldest first."""
    from detection.tracking.store import import_mlflow

    def search() -> list[Any]:
        client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{copy}/mlflow.db")
        experiment = client.get_experiment_by_name("detection")
        return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    return search


@pytest.fixture(scope="module")
def models(copy: Path) -> Callable[[], list[Any]]:
    """LoggedModels in the clone's store, oldest first."""
    from detection.tracking.store import import_mlflow

    def search() -> list[Any]:
        client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{copy}/mlflow.db")
        experiment = client.get_experiment_by_name("detection")
        found = client.search_logged_models([experiment.experiment_id])
        return sorted(found, key=lambda model: model.creation_timestamp)

    return search
