"""A small copy of this repository with its own git, DVC and MLflow store, for checks that take minutes.

The copy shares nothing with the checkout: it is the main repository of everything that runs in it.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from glob import iglob
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from detection.files import EVALUATION_RUN_JSON, TRAIN_RUN_JSON

ROOT = Path(__file__).resolve().parents[2]
DROPPED_VARIABLES = ("DVC_", "MLFLOW_", "DATA_ROOT", "DETECTION_", "PYTHONPATH")
MODEL = "retinanet_resnet18"


class Clone:
    """A repository in a folder.

    Args:
        folder: Folder of the repository, existing or to be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(
        cls,
        folder: Path,
        epochs: int,
        num_images: int,
        start: Path | None = None,
        model: str = MODEL,
        left_out: tuple[str, ...] = ("tests/", "docs/", "benchmarks/"),
        **train: Any,
    ) -> "Clone":
        """Copy all files that git does not ignore, as they are now, with a toy dataset and recipe.

        `start` is a detector file that training starts from.
        """
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            if os.path.lexists(ROOT / name) and not name.startswith(left_out):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
        (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
        clone = cls(folder)
        if start:
            shutil.copy(start, folder / "first.pt")
        clone._shrink(epochs, num_images, "first.pt" if start else None, model, train)
        clone.commit("clone")
        return clone

    def copy_to(self, folder: Path) -> "Clone":
        """Copy the repository with all outputs."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)

    def _shrink(self, epochs: int, num_images: int, start: str | None, model: str, train: dict[str, Any]) -> None:
        yaml = YAML()
        yaml.preserve_quotes = True
        document = yaml.load(self.folder / "params.yaml")
        document["model"], document["dataset"] = model, "shapes"
        document["datasets"]["shapes"] |= {"train": num_images, "val": 8, "test": 8, "image_size": 96}
        document["budgets"]["shapes"] = {"image_size": 96, "batch_size": 4, "epochs": epochs}
        document["models"][model]["fpn_channels"] = 64
        document["pretrain"] = {"method": "crops", "crops": {"image_size": 32, "epochs": 2, "batch_size": 8}}
        document["start"]["from"] = start
        document["train"] |= {"log_every": 1, "sample_images": 2} | train
        document["plots"] = {"sample_images": 2}
        yaml.dump(document, self.folder / "params.yaml")

    def commit(self, message: str) -> None:
        """Commit all files that git does not ignore."""
        for command in (("init", "-q"), ("add", "."), ("commit", "-qm", message)):
            name = ("-c", "user.name=Check", "-c", "user.email=check@localhost")
            subprocess.run(["git", *name, *command], cwd=self.folder, check=True, capture_output=True)

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment without variables that point outside the clone."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED_VARIABLES)}
        paths = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        git = {"GIT_AUTHOR_NAME": "Check", "GIT_AUTHOR_EMAIL": "check@localhost"}
        git |= {"GIT_COMMITTER_NAME": "Check", "GIT_COMMITTER_EMAIL": "check@localhost"}
        cache = str(self.folder.parent / f"{self.folder.name}-site-cache")
        return kept | git | {"PATH": paths, "DVC_SITE_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"} | more

    def start(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command in its own process group; its output goes to `<clone>.log`."""
        with Path(f"{self.folder}.log").open("ab") as log:
            return subprocess.Popen(
                words, cwd=self.folder, env=self.environment(**more), stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *words: str, **more: str) -> str:
        """Run a command to its end and return its stdout."""
        done = subprocess.run(words, cwd=self.folder, env=self.environment(**more), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        """Processes that run in the clone's folder or below, except DVC's queue workers."""
        return [one for one in self._all() if "queue-worker" not in " ".join(one.cmdline())]

    def workers(self) -> list[psutil.Process]:
        """DVC's queue workers, which outlive their tasks."""
        return [one for one in self._all() if "queue-worker" in " ".join(one.cmdline())]

    def stage(self, name: str) -> psutil.Process | None:
        """Process of a running stage."""
        found = [one for one in self.processes() if f"stages.{name}" in one.cmdline()]
        return found[0] if found else None

    def _all(self) -> Iterator[psutil.Process]:
        for one in psutil.process_iter():
            try:
                if one.pid != os.getpid() and Path(one.cwd()).is_relative_to(self.folder) and one.cmdline():
                    yield one
            except (psutil.Error, OSError):
                continue

    def checkpoint(self, stage: str = "train") -> Path:
        """State file of the only training of a stage."""
        found = sorted((self.folder / ".checkpoints" / stage).glob("*/state.pt"))
        return found[0] if found else self.folder / ".checkpoints" / stage / "none" / "state.pt"

    def saved_step(self, stage: str = "train") -> int:
        """Step of the checkpoint; loading it proves that the file is complete."""
        import torch

        path = self.checkpoint(stage)
        return int(torch.load(path, weights_only=True)["state"]["step"]) if path.exists() else 0

    def step(self) -> int:
        """Last step of the running training in any workspace; -1 without one."""
        below = self.folder / ".dvc/tmp/exps"
        # Path.glob raises when DVC removes a folder during the search
        found = iglob("**/reports/train/losses.csv", root_dir=below, recursive=True)
        files = [self.folder / "reports/train/losses.csv", *(below / one for one in found)]
        lines = [line for file in files for line in _lines(file)[-1:]]
        return max((int(line.split(",")[0]) for line in lines if line[:1].isdigit()), default=-1)

    def losses(self, folder: str = "reports/train") -> list[dict[str, str]]:
        """Rows of the training's losses.csv."""
        with (self.folder / folder / "losses.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def runs(self) -> list[Any]:
        """Runs of the clone's own store, oldest first."""
        from detection.tracking.store import import_mlflow

        client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{self.folder}/mlflow.db")
        experiment = client.get_experiment_by_name("detection")
        if experiment is None:
            return []
        return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def curves(self, run_id: str, uri: str | None = None) -> dict[str, list[tuple[int, int, float]]]:
        """Training curves of a run: step, time in ms and value of each point, by step."""
        from detection.tracking.store import import_mlflow

        client = import_mlflow().MlflowClient(tracking_uri=uri or f"sqlite:///{self.folder}/mlflow.db")
        others = ("system/", "test/", "speed/")
        names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(others)]
        return {
            name: sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(run_id, name))
            for name in sorted(names)
        }

    def run_id(self, stage: str = "train") -> str | None:
        """Run id in the workspace's `run.json`."""
        path = TRAIN_RUN_JSON if stage == "train" else EVALUATION_RUN_JSON
        found: str | None = json.loads((self.folder / path).read_text())["run_id"]
        return found


def wait(what: Callable[[], Any], seconds: float, pause: float = 0.02) -> Any:
    """Wait until a condition is true; return its last value.

    Counts pauses instead of wall time, so that a machine that is suspended does not cause a timeout.
    """
    for _ in range(round(seconds / pause)):
        if found := what():
            return found
        time.sleep(pause)
    return what()


def same_weights(one: Path, other: Path) -> bool:
    """Return True if two weight files are equal to the last bit."""
    import torch

    states = []
    for path in (one, other):
        content = torch.load(path, weights_only=True, map_location="cpu")
        states.append(content.get("state_dict") or content.get("model") or content)
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
