"""Git and DVC as one: experiments by name, commits by revision, and which of them hold a row."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detection.errors import DataError
from detection.files import dvc_root

RUN_JSONS = ("reports/evaluation/run.json", "reports/train/run.json")
"""The files that name the row of an experiment; the evaluation's row may be a fork of the training's."""
NAMESPACE = "refs/exps/"
INTERNAL = ("stash", "apply", "celery", "exec", "temp")
"""Where DVC keeps its own state beside the experiments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DvcExperiment:
    """An experiment of DVC."""

    name: str
    rev: str
    """Its commit."""
    baseline: str
    """The commit that it started from."""


class Repository:
    """The main repository of this project."""

    def __init__(self) -> None:
        self.root: Path = dvc_root().resolve()
        if not (self.root / ".dvc").is_dir():
            raise DataError(f"{self.root} is no DVC repository; run from the project's folder")

    def git(self, *words: str) -> str:
        """What a git command prints.

        Raises:
            DataError: It fails.
        """
        done = self._git(*words)
        if done.returncode:
            raise DataError(f"git {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def experiments(self) -> list[DvcExperiment]:
        """All experiments of DVC, whatever commit they started from, the newest first."""
        listed = self.git(
            "for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", NAMESPACE
        )
        found = []
        for line in listed.splitlines():
            ref, rev = line.split()
            parts = ref.removeprefix(NAMESPACE).split("/")
            if len(parts) == 3 and parts[0] not in INTERNAL:
                found.append(DvcExperiment(name=parts[2], rev=rev, baseline=parts[0] + parts[1]))
        return found

    def experiment(self, name: str) -> DvcExperiment | None:
        """The experiment of that name; of several, the one that started from HEAD.

        Raises:
            DataError: Several have the name, and none of them started from HEAD.
        """
        same = [one for one in self.experiments() if one.name == name]
        if len(same) > 1:
            here = [one for one in same if one.baseline == self.head()]
            if not here:
                revs = ", ".join(one.rev[:7] for one in same)
                raise DataError(f"there are {len(same)} experiments {name}; name one by its commit: {revs}")
            return here[0]
        return same[0] if same else None

    def commit(self, revision: str) -> str | None:
        """The commit that git means by a revision; None where it means none."""
        done = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
        return done.stdout.strip() if done.returncode == 0 else None

    def head(self) -> str | None:
        """The commit that the workspace stands on."""
        return self.commit("HEAD")

    def run_ids(self, rev: str) -> list[str]:
        """The rows that a commit names, the evaluation's first."""
        found = (_run_id(self.show(rev, path)) for path in RUN_JSONS)
        return [run_id for run_id in found if run_id]

    def show(self, rev: str, path: str) -> bytes | None:
        """A file of a commit that git keeps; None where it keeps none."""
        done = self._git("show", f"{rev}:./{path}")  # git's root may be a folder above
        return done.stdout.encode() if done.returncode == 0 else None

    def commits_of(self, run_id: str) -> Iterator[str]:
        """Commits of HEAD, branches and tags whose scores a row holds, the newest first."""
        places = ("--branches", "--tags", "--remotes", *(["HEAD"] if self.head() else []))
        words = ("log", *places, "--format=%H", f"-S{run_id}", "--", *RUN_JSONS)
        for rev in self.git(*words).split():
            if run_id in self.run_ids(rev)[:1]:
                yield rev

    def changed(self, *paths: str) -> list[str]:
        """Files known to git that differ from HEAD, of those that the pathspecs name."""
        return self.git("diff", "--name-only", "HEAD", "--", *paths).splitlines()

    def _git(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["git", "-C", str(self.root), *words], capture_output=True, text=True, check=False
        )


def _run_id(text: bytes | None) -> str | None:
    try:
        run_id = json.loads(text or b"{}").get("run_id")
    except (ValueError, AttributeError):
        return None
    return str(run_id) if run_id else None
