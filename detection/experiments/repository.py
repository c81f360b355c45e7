"""The git repository as DVC uses it: experiments, commits, and the MLflow runs that they record."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detection.errors import DataError
from detection.files import EVALUATION_RUN_JSON, TRAIN_RUN_JSON, dvc_root

RUN_JSONS = (str(EVALUATION_RUN_JSON), str(TRAIN_RUN_JSON))
"""Files that record an experiment's run; an evaluation with other settings has a run of its own."""
NAMESPACE = "refs/exps/"
INTERNAL_REFS = ("stash", "apply", "celery", "exec", "temp")
"""Refs below `NAMESPACE` that hold DVC's own state."""


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
        DataError: There is no DVC repository here.
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

    def _git(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["git", "-C", str(self.root), *args], capture_output=True, text=True, check=False
        )


def _run_id(content: bytes | None) -> str | None:
    try:
        run_id = json.loads(content or b"{}").get("run_id")
    except (ValueError, AttributeError):
        return None
    return str(run_id) if run_id else None
