"""The files of an experiment by their path in the repository, wherever they are kept."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from detection.errors import DataError
from detection.pipeline import locked_outs, locked_stages, parse
from detection.tracking.store import Store

DETECTOR = "models/detector.pt"
ARTIFACT_FOLDERS = {
    "reports/evaluation/": "evaluation/",
    "reports/train/": "train/",
    "reports/dataset/": "dataset/",
    "reports/plots/": "plots/",
    "models/": "models/",
    "reports/": "",
}
"""Where `tracking` puts what the stages leave, as folders of a row's artifacts."""


class Files(Protocol):
    """Where an experiment's files come from."""

    def read(self, path: str) -> bytes | None:
        """The content of a file; None where the experiment has none.

        Args:
            path: As in the repository: `reports/train/losses.csv`.

        Raises:
            DataError: The experiment has it, but its content is not on this machine.
        """


class Workspace:
    """The working tree."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """See `Files`."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None


class Revision:
    """A commit: what git keeps from git, what DVC keeps from its cache, or from its remote."""

    def __init__(self, root: Path, rev: str) -> None:
        from dvc.api import DVCFileSystem

        self._rev, self._system = rev, DVCFileSystem(str(root), rev=rev)

    def read(self, path: str) -> bytes | None:
        """See `Files`."""
        if not self._system.exists(path):
            return None
        try:
            content: bytes = self._system.read_bytes(path)
        except Exception as error:  # DVC's remotes raise whatever their servers and disks do
            if path not in locked_outs(self.read("dvc.lock")):
                return None  # an output that no stage has made yet
            raise DataError(
                f"{path} of {self._rev[:7]} is neither in DVC's cache nor in a remote ({error}); "
                "`dvc pull` or `dvc exp pull` where the experiment was made, or run it again: dvc exp run"
            ) from None
        return content


class RunFiles:
    """A row of MLflow: its artifacts, and out of DVC's cache what its `dvc.lock` names."""

    def __init__(self, store: Store, run_id: str, root: Path) -> None:
        self._store, self._id, self._root = store, run_id, root
        self._lock: dict[str, str] | None = None

    def read(self, path: str) -> bytes | None:
        """See `Files`."""
        folder = next((own for own in ARTIFACT_FOLDERS if path.startswith(own)), "")
        content = self._artifact(ARTIFACT_FOLDERS.get(folder, "") + path.removeprefix(folder))
        return self._cached(path) if content is None else content

    def _artifact(self, path: str) -> bytes | None:
        from mlflow.exceptions import MlflowException

        parent = path.rpartition("/")[0] or None
        try:
            if path not in {one.path for one in self._store.client.list_artifacts(self._id, parent)}:
                return None
            with TemporaryDirectory(prefix="detection-file-") as folder:  # MLflow's own would be left behind
                return Path(self._store.client.download_artifacts(self._id, path, folder)).read_bytes()
        except (MlflowException, OSError) as error:
            raise DataError(f"{path} of the row {self._id} cannot be read: {error}") from None

    def _cached(self, path: str) -> bytes | None:
        if self._lock is None:
            self._lock = locked_outs(self._artifact("dvc.lock"))
        md5 = self._lock.get(path)
        if md5 is None:
            return None
        from dvc.repo import Repo

        with Repo(str(self._root)) as repo:
            cached = Path(repo.cache.local.oid_to_path(md5))
        if not cached.is_file():
            raise DataError(f"{path} of the row {self._id} is not in DVC's cache; dvc pull where it was made")
        return cached.read_bytes()


def is_scored(lock: bytes | None) -> bool:
    """Whether the scores beside a detector are its own: `dvc repro train` leaves those of another one."""
    made = locked_outs(lock).get(DETECTOR)
    deps = locked_stages(lock).get("evaluate", {}).get("deps", [])
    return made is None or all(one.get("md5") == made for one in deps if one["path"] == DETECTOR)


def read_json(files: Files, path: str) -> dict[str, Any]:
    """A JSON object; empty where the experiment has no such file."""
    content = files.read(path)
    values: dict[str, Any] = json.loads(content) if content else {}
    return values


def read_params(files: Files) -> dict[str, Any]:
    """The sections of its `params.yaml`; empty where it has none."""
    content = files.read("params.yaml")
    return parse("params.yaml", content) if content else {}
