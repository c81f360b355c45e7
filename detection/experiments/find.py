"""Find an experiment by any of its names: DVC experiment, git revision, MLflow run, workspace."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.errors import DataError, TrackingError
from detection.experiments.repository import (
    RUN_JSONS,
    DvcExperiment,
    Files,
    FirstOf,
    Repository,
    Revision,
    RunFiles,
    Workspace,
    is_scored,
    read_json,
)
from detection.files import DETECTOR, EVALUATED_JSON
from detection.pipeline import LOCK, locked_outs
from detection.text import did_you_mean
from detection.tracking.client import REPLACES, find_run
from detection.tracking.store import SQLITE, Store, connect, failure, tracking_uri

WORKSPACE = "workspace"
SHORT_HASH_LENGTH = 8
"""Characters of a commit hash in output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment and its files."""

    name: str
    """Name for output."""
    files: Files
    """Inputs and outputs of the experiment."""
    rev: str | None = None
    """Commit; None for the workspace and for a run that no commit records."""

    def run_id(self) -> str | None:
        """MLflow run id: the evaluation's, else the training's."""
        ids = (read_json(self.files, path).get("run_id") for path in RUN_JSONS)
        return next((str(one) for one in ids if one), None)

    def check_scored(self) -> None:
        """Refuse scores that are not of the detector beside them.

        Raises:
            DataError: The detector was trained again after the evaluation.
        """
        if isinstance(self.files, RunFiles):  # stored with the detector that they belong to
            return
        scored = read_json(self.files, str(EVALUATED_JSON)).get("detector")
        if isinstance(self.files, Workspace):
            there = self.files.digest(str(DETECTOR))
        else:
            there = locked_outs(self.files.read(LOCK)).get(str(DETECTOR))
        known = scored is not None and there is not None
        if (scored != there) if known else not is_scored(self.files.read(LOCK)):
            raise DataError(
                f"{self.name}: the detector was trained again after its evaluation; run `dvc repro` to evaluate it"
            )


def find(name: str, repository: Repository) -> Experiment:
    """Find an experiment.

    Args:
        name: `workspace`, a name that `dvc exp show` lists, a git revision, or the id or name of an MLflow
            run.
        repository: Repository to search.

    Raises:
        DataError: No experiment has the name, or several do.
        TrackingError: The MLflow store cannot be read.
    """
    if name == WORKSPACE:
        return Experiment(name=name, files=Workspace(repository.root))
    named = repository.experiment(name)
    rev = named.rev if named else repository.commit(name)
    if rev is not None:
        shown = name[:SHORT_HASH_LENGTH] if re.fullmatch("[0-9a-f]{9,40}", name) else name
        return Experiment(name=shown, files=_files_of(repository, rev), rev=rev)
    experiment = _find_by_run(name, repository)
    if experiment is None:
        known = [WORKSPACE, *(one.name for one in repository.experiments())]
        raise DataError(f"no experiment, MLflow run or git revision {name!r}; {did_you_mean(name, known)}")
    return experiment


def _find_by_run(name: str, repository: Repository) -> Experiment | None:
    store = open_store()
    run = run_of(store, name) if store else None
    if store is None or run is None:
        return None
    for named in experiments_of(run, repository):
        return Experiment(name=named.name, files=_files_of(repository, named.rev), rev=named.rev)
    for rev in commits_of(run, repository):
        return Experiment(name=run.info.run_name, files=_files_of(repository, rev), rev=rev)
    return Experiment(name=run.info.run_name, files=RunFiles(store, run.info.run_id, repository.root))


def _files_of(repository: Repository, rev: str) -> Files:
    """Files of a commit; what DVC no longer has, as after `dvc gc`, comes from the MLflow run."""

    def of_run() -> Files | None:
        store = open_store()
        for run_id in repository.run_ids(rev)[:1]:
            run = find_run(store, run_id) if store else None
            if store is not None and run is not None:
                return RunFiles(store, run.info.run_id, repository.root)
        return None

    return FirstOf(Revision(repository.root, rev), of_run)


def experiments_of(run: Any, repository: Repository) -> Iterator[DvcExperiment]:
    """DVC experiments whose scores are in an MLflow run, those that the run names first.

    Several experiments share a run if DVC restored one from its run-cache under another name. An experiment
    that was evaluated again also records the run of its training, but its scores are in another run.
    """
    tags = run.data.tags
    names = [tags.get("dvc.exp_name", ""), *tags.get("dvc.exp_names", "").split(",")]
    experiments = repository.experiments()
    experiments.sort(key=lambda one: names.index(one.name) if one.name in names else len(names))
    for one in experiments:
        if not ids(run).isdisjoint(repository.run_ids(one.rev)[:1]):
            yield one


def commits_of(run: Any, repository: Repository) -> Iterator[str]:
    """Commits of HEAD, branches and tags whose scores are in an MLflow run, newest first."""
    for run_id in sorted(ids(run)):
        yield from repository.commits_of(run_id)


def open_store() -> Store | None:
    """MLflow store of this project; None if nothing was tracked yet.

    Raises:
        TrackingError: The store cannot be used as configured, or does not answer.
    """
    uri = tracking_uri()
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return None
    try:
        return connect()
    except TrackingError:
        raise
    except Exception as error:  # MLflow's stores raise any type of error
        raise TrackingError(failure(error)) from None


def run_of(store: Store, name: str) -> Any:
    """MLflow run (`mlflow.entities.Run`) of an id or a name; None without one.

    Raises:
        TrackingError: Several runs have the name.
    """
    run = find_run(store, name)
    if run is not None or "'" in name:
        return run
    same = list(store.client.search_runs([store.experiment], f"attributes.run_name = '{name}'"))
    if len(same) > 1:
        found = ", ".join(one.info.run_id for one in same)
        raise TrackingError(f"{len(same)} MLflow runs are named {name}; use an id: {found}")
    return same[0] if same else None


def ids(run: Any) -> set[str]:
    """Ids under which files record a run: its own, and that of the lost run that it replaces."""
    return {str(run.info.run_id), str(run.data.tags.get(REPLACES, run.info.run_id))}
