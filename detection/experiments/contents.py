"""Files of an experiment by their path in the repository, wherever they are stored."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from detection.errors import DataError
from detection.files import DETECTOR
from detection.pipeline import LOCK, PARAMS, locked_outs, locked_stages, parse
from detection.tracking.store import Store

ARTIFACT_FOLDERS = {
    "reports/evaluation/": "evaluation/",
    "reports/train/": "train/",
    "reports/dataset/": "dataset/",
    "reports/plots/": "plots/",
    "models/": "models/",
    "reports/": "",
}
"""Artifact folder of an MLflow run for each folder of the repository, as `tracking` stores them."""


class Files(Protocol):
    """Source of an experiment's files."""

    def read(self, path: str) -> bytes | None:
        """Content of a file; None if the experiment does not have it.

        Args:
            path: Path in the repository, such as `reports/train/losses.csv`.

        Raises:
            DataError: The experiment has the file, but its content is not on this machine.
        """


class Workspace:
    """Files of the working tree."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """See `Files.read`."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None


class Revision:
    """Files of a commit: tracked files from git, outputs from DVC's cache or its remote."""

    def __init__(self, root: Path, rev: str) -> None:
        from dvc.api import DVCFileSystem

        self._rev, self._system = rev, DVCFileSystem(str(root), rev=rev)

    def read(self, path: str) -> bytes | None:
        """See `Files.read`."""
        if not self._system.exists(path):
            return None
        try:
            content: bytes = self._system.read_bytes(path)
        except Exception as error:  # DVC's remotes raise any type of error
            if path not in locked_outs(self.read(LOCK)):
                return None  # an output that no stage has written yet
            raise DataError(
                f"{path} of {self._rev[:7]} is neither in DVC's cache nor in a remote ({error}); "
                "`dvc push` or `dvc exp push` where the experiment was run, or run it again: dvc exp run"
            ) from None
        return content


class RunFiles:
    """Files of an MLflow run: its artifacts, and DVC's cache for outputs that its dvc.lock lists."""

    def __init__(self, store: Store, run_id: str, root: Path) -> None:
        self._store, self._id, self._root = store, run_id, root
        self._lock: dict[str, str] | None = None

    def read(self, path: str) -> bytes | None:
        """See `Files.read`."""
        folder = next((own for own in ARTIFACT_FOLDERS if path.startswith(own)), "")
        content = self._artifact(ARTIFACT_FOLDERS.get(folder, "") + path.removeprefix(folder))
        return self._cached(path) if content is None else content

    def _artifact(self, path: str) -> bytes | None:
        from mlflow.exceptions import MlflowException

        parent = path.rpartition("/")[0] or None
        client = self._store.client
        try:
            if path not in {one.path for one in client.list_artifacts(self._id, parent)}:
                return None
            with TemporaryDirectory(prefix="detection-file-") as folder:  # MLflow leaves its own behind
                return Path(client.download_artifacts(self._id, path, folder)).read_bytes()
        except (MlflowException, OSError) as error:
            raise DataError(f"{path} of the MLflow run {self._id} cannot be read: {error}") from None

    def _cached(self, path: str) -> bytes | None:
        if self._lock is None:
            self._lock = locked_outs(self._artifact(LOCK))
        md5 = self._lock.get(path)
        if md5 is None:
            return None
        from dvc.repo import Repo

        with Repo(str(self._root)) as repo:
            cached = Path(repo.cache.local.oid_to_path(md5))
        if not cached.is_file():
            raise DataError(
                f"{path} of the MLflow run {self._id} is not in DVC's cache; run `dvc pull` in the "
                "repository of the experiment"
            )
        return cached.read_bytes()


def is_scored(lock: bytes | None) -> bool:
    """Return False if a dvc.lock's scores are of another detector, as after `dvc repro train`."""
    md5 = locked_outs(lock).get(str(DETECTOR))
    deps = locked_stages(lock).get("evaluate", {}).get("deps", [])
    return md5 is None or all(dep.get("md5") == md5 for dep in deps if dep["path"] == str(DETECTOR))


def read_json(files: Files, path: str) -> dict[str, Any]:
    """A JSON object; empty if the experiment does not have the file."""
    content = files.read(path)
    values: dict[str, Any] = json.loads(content) if content else {}
    return values


def read_params(files: Files) -> dict[str, Any]:
    """Sections of the experiment's params.yaml; empty without one."""
    content = files.read(PARAMS)
    return parse(PARAMS, content) if content else {}
