"""The git repository as DVC uses it: experiments, commits, recorded runs, and files of an experiment."""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from detection.errors import DataError
from detection.files import DETECTOR, EVALUATION_RUN_JSON, TRAIN_RUN_JSON, dvc_root, md5
from detection.pipeline import LOCK, PARAMS, locked_outs, locked_stages, parse
from detection.tracking.store import Store

RUN_JSONS = (str(EVALUATION_RUN_JSON), str(TRAIN_RUN_JSON))
"""Files that record an experiment's run; an evaluation with other settings has a run of its own."""
NAMESPACE = "refs/exps/"
INTERNAL_REFS = ("stash", "apply", "celery", "exec", "temp")
"""Refs below `NAMESPACE` that hold DVC's own state."""


EXEC_BASELINE = "refs/exps/exec/EXEC_BASELINE"
"""Ref that DVC has while it runs an experiment in the workspace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DvcExperiment:
    """A DVC experiment."""

    name: str
    """Name that `dvc exp show` lists."""
    rev: str
    """Commit of the experiment."""
    baseline: str
    """Commit that it started from."""


class Repository:
    """The main repository of this project.

    Raises:
        DataError: The current folder is not in a DVC repository.
    """

    def __init__(self) -> None:
        self.root: Path = dvc_root().resolve()
        if not (self.root / ".dvc").is_dir():
            raise DataError(f"{self.root} is not a DVC repository; run the command in the project's folder")

    def git(self, *args: str) -> str:
        """Stdout of a git command.

        Raises:
            DataError: The command fails.
        """
        done = self._git(*args)
        if done.returncode:
            raise DataError(f"git {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def experiments(self) -> list[DvcExperiment]:
        """All DVC experiments of any baseline, newest first."""
        form = "--format=%(refname) %(objectname)"
        found = []
        for line in self.git("for-each-ref", "--sort=-committerdate", form, NAMESPACE).splitlines():
            ref, rev = line.split()
            parts = ref.removeprefix(NAMESPACE).split("/")
            if len(parts) == 3 and parts[0] not in INTERNAL_REFS:
                found.append(DvcExperiment(name=parts[2], rev=rev, baseline=parts[0] + parts[1]))
        return found

    def experiment(self, name: str) -> DvcExperiment | None:
        """Experiment of a name; of several, the one that started from HEAD.

        Raises:
            DataError: Several experiments have the name, and none started from HEAD.
        """
        same = [one for one in self.experiments() if one.name == name]
        if len(same) <= 1:
            return same[0] if same else None
        head = self.head()
        current = [one for one in same if one.baseline == head]
        if not current:
            revs = ", ".join(one.rev[:7] for one in same)
            raise DataError(f"{len(same)} experiments are named {name}; name one by its commit: {revs}")
        return current[0]

    def commit(self, revision: str) -> str | None:
        """Commit of a git revision; None if it names none."""
        done = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
        return done.stdout.strip() if done.returncode == 0 else None

    def head(self) -> str | None:
        """Commit of the workspace."""
        return self.commit("HEAD")

    def run_ids(self, rev: str) -> list[str]:
        """MLflow run ids that a commit records, the evaluation's first."""
        found = (_run_id(self.show(rev, path)) for path in RUN_JSONS)
        return [run_id for run_id in found if run_id]

    def show(self, rev: str, path: str) -> bytes | None:
        """Content of a file that git tracks, at a commit; None without it."""
        done = self._git("show", f"{rev}:./{path}")  # the root of git may be a folder above
        return done.stdout.encode() if done.returncode == 0 else None

    def commits_of(self, run_id: str) -> Iterator[str]:
        """Commits of HEAD, branches and tags whose evaluation run this is, newest first."""
        refs = ("--branches", "--tags", "--remotes", *(["HEAD"] if self.head() else []))
        for rev in self.git("log", *refs, "--format=%H", f"-S{run_id}", "--", *RUN_JSONS).split():
            if run_id in self.run_ids(rev)[:1]:
                yield rev

    def changed(self, *pathspecs: str) -> list[str]:
        """Tracked files that differ from HEAD, out of those that the pathspecs match."""
        return self.git("diff", "--name-only", "HEAD", "--", *pathspecs).splitlines()

    def running(self) -> str | None:
        """Command of a live process that writes outputs in the workspace, such as `dvc exp run`; None without one."""
        import psutil  # not at the top: training without a run works without it

        try:
            written = json.loads((self.root / ".dvc/tmp/rwlock").read_bytes()).get("write", {})
        except (OSError, ValueError):
            return None
        queue = self.root / ".dvc/tmp/exps"
        for path, info in written.items():
            if self.root in Path(path).parents and queue not in Path(path).parents and psutil.pid_exists(info["pid"]):
                return str(info["cmd"])
        return None

    def lost_branch(self) -> str | None:
        """Branch that a killed `dvc exp run` took HEAD off, where a later commit would be on no branch; None: none."""
        if self._git("symbolic-ref", "--quiet", "HEAD").returncode == 0 or self.commit(EXEC_BASELINE) is None:
            return None
        names = self._git("for-each-ref", "--points-at", "HEAD", "--format=%(refname:short)", "refs/heads").stdout
        return names.split()[0] if names and self.running() is None else None

    def missing(self, rev: str) -> list[str]:
        """Outputs of a commit that are neither in DVC's cache nor in its remote."""
        from dvc.repo import Repo

        outs = locked_outs(self.show(rev, LOCK))
        outs = {path: oid for path, oid in outs.items() if self.show(rev, path) is None}  # metrics are in git
        with Repo(str(self.root)) as repo:
            cache = repo.cache.local

            def absent() -> list[str]:
                return [path for path, oid in outs.items() if not Path(cache.oid_to_path(oid)).is_file()]

            if absent() and repo.config["core"].get("remote"):
                with suppress(Exception):  # DVC's remotes raise any type of error
                    repo.fetch(revs=[rev])
            return absent()

    def _git(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", "-C", str(self.root), *args], capture_output=True, text=True, check=False)


def _run_id(content: bytes | None) -> str | None:
    try:
        run_id = json.loads(content or b"{}").get("run_id")
    except (ValueError, AttributeError):
        return None
    return str(run_id) if run_id else None


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

    def digest(self, path: str) -> str | None:
        """md5 of a file; None without it."""
        return md5(self._root / path) if (self._root / path).is_file() else None


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
            if _locked_out(locked_outs(self.read(LOCK)), path) is None:
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
                return self._detector() if path == str(DETECTOR) else None
            with TemporaryDirectory(prefix="detection-file-") as folder:  # MLflow leaves its own behind
                return Path(client.download_artifacts(self._id, path, folder)).read_bytes()
        except (MlflowException, OSError) as error:
            raise DataError(f"{path} of the MLflow run {self._id} cannot be read: {error}") from None

    def _detector(self) -> bytes | None:
        """The detector from the LoggedModel of the run."""
        from detection.tracking.logged_model import read_detector

        return read_detector(self._store, self._id)

    def _cached(self, path: str) -> bytes | None:
        if self._lock is None:
            self._lock = locked_outs(self._artifact(LOCK))
        out = _locked_out(self._lock, path)
        if out is None:
            return None
        from dvc.repo import Repo

        with Repo(str(self._root)) as repo:
            cached = Path(repo.cache.local.oid_to_path(self._lock[out]))
            if out != path and cached.is_file():  # the list of a folder's files
                md5s = {one["relpath"]: one["md5"] for one in json.loads(cached.read_bytes())}
                if (name := path.removeprefix(f"{out}/")) not in md5s:
                    return None
                cached = Path(repo.cache.local.oid_to_path(md5s[name]))
        if not cached.is_file():
            raise DataError(
                f"{path} of the MLflow run {self._id} is not in DVC's cache; run `dvc pull` in the "
                "repository of the experiment"
            )
        return cached.read_bytes()


def _locked_out(outs: Iterable[str], path: str) -> str | None:
    """Output that is a file or contains it; None without one."""
    return next((out for out in outs if path == out or path.startswith(f"{out}/")), None)


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


class FirstOf:
    """Files from the first source that has them: DVC, then the MLflow run.

    Args:
        first: Preferred source.
        second: Called for the other one when the first lacks a file; None: there is none.
    """

    def __init__(self, first: Files, second: Callable[[], Files | None]) -> None:
        self._first, self._second = first, second

    def read(self, path: str) -> bytes | None:
        """See `Files.read`."""
        try:
            return self._first.read(path)
        except DataError:
            other = self._second()
            content = other.read(path) if other else None
            if content is None:
                raise
            return content
