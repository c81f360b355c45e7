"""A tiny copy of this repository, with real git and real DVC, in which the whole pipeline takes a minute."""

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
    """The repository as a clone has it, with a dataset, a budget and a detector of toy size."""
    folder = tmp_path_factory.mktemp("pipeline") / "clone"
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    # Not the one of this checkout, which may have run; as it stands in the repository.
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
    """The smallest sizes at which every stage still does all it does, and a second model to switch to.

    Below 65 px the coarsest map is one pixel wide, and oneDNN's bf16 gradient of the stride-2 convolution
    above it holds what was in memory before.
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
    document["models"]["sibling"] = dict(document["models"][model]) | {
        "optimizer": {"name": "sgd", "lr": 0.01}
    }
    document["plots"] = {"sample_images": 2}
    yaml.dump(document, file)


@pytest.fixture(scope="session")
def command(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run a command in the copy as a person would, with its environment's programs first."""
    gone = ("DVC_", "MLFLOW_", "DATA_ROOT", "DETECTION_TRACKING", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(gone)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["OMP_NUM_THREADS"] = (
        "1"  # threads that wait for each other on a busy machine cost five times that
    )
    environment["DVC_SITE_CACHE_DIR"] = str(tmp_path_factory.mktemp("site-cache"))

    def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(words, cwd=copy, capture_output=True, text=True, env=environment, timeout=600)
        if check:
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def rows(copy: Path) -> Callable[[], list[Any]]:
    """The rows of the copy's store, oldest first."""
    from detection.tracking.store import import_mlflow

    def search() -> list[Any]:
        client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{copy}/mlflow.db")
        experiment = client.get_experiment_by_name("detection")
        return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    return search
