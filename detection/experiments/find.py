"""From what a person calls an experiment to its files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from detection.errors import DataError
from detection.experiments.contents import Files, Revision, RunFiles, Workspace, is_scored, read_json
from detection.experiments.repository import RUN_JSONS, DvcExperiment, Repository
from detection.experiments.runs import ids, open_store, run_of
from detection.text import did_you_mean

WORKSPACE = "workspace"
SHORT = 8
"""Characters of an id that people are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment that was found."""

    name: str
    """What people are shown."""
    files: Files
    """All it was made of, and all it made."""
    rev: str | None = None
    """Its commit; None for the workspace, and for a row that no commit holds."""

    def run_id(self) -> str | None:
        """The row it is tracked in: the evaluation's, else the training's."""
        ids = (read_json(self.files, path).get("run_id") for path in RUN_JSONS)
        return next((str(one) for one in ids if one), None)

    def check_scored(self) -> None:
        """Refuse a detector beside the scores of another one.

        Raises:
            DataError: It was trained again after it was evaluated.
        """
        of_row = isinstance(self.files, RunFiles)  # its dvc.lock is of before the evaluation's end
        if not of_row and not is_scored(self.files.read("dvc.lock")):
            raise DataError(
                f"{self.name}: the detector was trained again after it was evaluated; `dvc repro` scores it"
            )


def find(name: str, repository: Repository) -> Experiment:
    """Find an experiment.

    Args:
        name: `workspace`, a name that `dvc exp show` shows, a git revision, or the id or name of a row.
        repository: Where to look.

    Raises:
        DataError: There is none, or there are several.
        TrackingError: The store of the rows cannot be asked.
    """
    if name == WORKSPACE:
        return Experiment(name=name, files=Workspace(repository.root))
    named = repository.experiment(name)
    rev = named.rev if named else repository.commit(name)
    if rev is not None:
        shown = name[:SHORT] if re.fullmatch("[0-9a-f]{9,40}", name) else name
        return Experiment(name=shown, files=Revision(repository.root, rev), rev=rev)
    found = _by_row(name, repository)
    if found is None:
        known = [WORKSPACE, *(one.name for one in repository.experiments())]
        raise DataError(f"there is no experiment, row or git revision {name!r}; {did_you_mean(name, known)}")
    return found


def _by_row(name: str, repository: Repository) -> Experiment | None:
    store = open_store()
    row = run_of(store, name) if store else None
    if store is None or row is None:
        return None
    for named in experiments_of(row, repository):
        return Experiment(name=named.name, files=Revision(repository.root, named.rev), rev=named.rev)
    for rev in commits_of(row, repository):
        return Experiment(name=row.info.run_name, files=Revision(repository.root, rev), rev=rev)
    return Experiment(name=row.info.run_name, files=RunFiles(store, row.info.run_id, repository.root))


def experiments_of(row: Any, repository: Repository) -> Iterator[DvcExperiment]:
    """The experiments of DVC whose scores a row holds, those that the row names first.

    Several experiments share a row where DVC restored a finished one under another name. One that was
    evaluated again names the row of its training too, but its scores are in a row of their own.
    """
    tags = row.data.tags
    told = [tags.get("dvc.exp_name", ""), *tags.get("dvc.exp_names", "").split(",")]
    everything = repository.experiments()
    everything.sort(key=lambda one: told.index(one.name) if one.name in told else len(told))
    for one in everything:
        if not ids(row).isdisjoint(repository.run_ids(one.rev)[:1]):
            yield one


def commits_of(row: Any, repository: Repository) -> Iterator[str]:
    """Commits of HEAD, branches and tags whose scores a row holds, the newest first."""
    for run_id in sorted(ids(row)):
        yield from repository.commits_of(run_id)
