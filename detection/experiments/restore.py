"""Restore the experiment of an MLflow run in the workspace."""

import shlex
from typing import Any

from detection.errors import DataError
from detection.experiments.find import commits_of, experiments_of, open_store, run_of
from detection.experiments.repository import DvcExperiment, Repository, RunFiles, read_params
from detection.pipeline import NOT_CODE, PARAMS, parse
from detection.text import flatten
from detection.tracking.client import as_text

APPLY_STASH = "refs/exps/apply/stash"
"""Git ref in which DVC keeps the workspace from before `dvc exp apply`."""
MAX_CHANGES_ON_COMMAND_LINE = 12


def restore(name: str, repository: Repository) -> str:
    """Restore an experiment in the workspace, or return the commands that reproduce it.

    Args:
        name: Id or name of an MLflow run, or name of an experiment.
        repository: This repository.

    Returns:
        Text for the terminal.

    Raises:
        DataError: No run or experiment has the name, or uncommitted changes would be overwritten.
    """
    named = repository.experiment(name)
    if named is not None:
        return _apply(named, repository)
    store = open_store()
    run = run_of(store, name) if store else None
    if store is None or run is None:
        raise DataError(f"no MLflow run and no experiment {name!r}; `make ui` and `dvc exp show` list them")
    for one in experiments_of(run, repository):
        return _apply(one, repository)
    for rev in commits_of(run, repository):
        return (
            f"the run {run.info.run_name} is not a DVC experiment, but a commit records it:\n"
            f"  git checkout {rev[:10]} && dvc checkout"
        )
    return _commands(run, RunFiles(store, run.info.run_id, repository.root), repository)


def _apply(named: DvcExperiment, repository: Repository) -> str:
    changed = repository.changed(".", *NOT_CODE)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DataError(
            f"uncommitted changes in {', '.join(changed[:3])}{more} would be overwritten by {named.name}; "
            "commit them or run `git stash`"
        )
    if command := repository.running():
        raise DataError(
            f"`{command}` is running in this workspace and would be saved as {named.name}; wait for its end"
        )
    if gone := repository.missing(named.rev):
        raise DataError(
            f"{named.name}: {gone[0]} is neither in DVC's cache nor in its remote, so the workspace stays as it is; "
            f"`dvc exp push` where it was run, or run it again: dvc exp run -f"
        )
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    params = repository.root / PARAMS
    edited = params.read_bytes() if repository.changed(PARAMS) else None
    try:
        with Repo(str(repository.root)) as repo:
            repo.experiments.apply(named.rev)
    except DvcException as error:
        raise DataError(f"dvc exp apply {named.name}: {error}") from None
    lines = [f"{named.name} is in the workspace: params.yaml, dvc.lock, reports/ and models/detector.pt"]
    if named.baseline != repository.head():
        lines.append(f"It started from commit {named.baseline[:7]}: the code is of that commit too.")
    if edited is not None and edited != params.read_bytes():
        lines.append(
            "params.yaml had uncommitted changes; until the next apply they are in:\n"
            f"  git show {APPLY_STASH}:./params.yaml"
        )
    lines.append("To go back: git checkout HEAD . && dvc checkout")
    return "\n".join(lines)


def _commands(run: Any, files: RunFiles, repository: Repository) -> str:
    """Commands that reproduce a run."""
    tags, logged = run.data.tags, run.data.params
    rev = tags.get("dvc.baseline_rev") or tags.get("mlflow.source.git.commit")
    lines = [f"no DVC experiment has the run {run.info.run_name}; these commands reproduce it:"]
    if rev is None:
        lines.append("  (the run does not record its commit)")
    elif repository.commit(rev) is None:
        lines.append(f"  git fetch --all         # commit {rev[:10]} is not in this clone")
    before, sections = _params_at(repository, rev), flatten(read_params(files))
    if rev is not None:
        lines.append(f"  git checkout {rev[:10]}")
    changes = {key: value for key, value in sections.items() if before.get(key) != value}
    few = len(changes) <= MAX_CHANGES_ON_COMMAND_LINE and sections.keys() == before.keys()
    if sections and before and few:
        lines.append(_dvc_exp_run(changes))
    elif sections:
        lines.append(f"  mlflow artifacts download -r {run.info.run_id} -a params.yaml -d .")
        lines.append("  dvc exp run")
    else:
        lines.append(_dvc_exp_run({key: logged[key] for key in ("model", "dataset", "seed") if key in logged}))
        lines.append("The run has no params.yaml; `make ui` shows its other params.")
    if tags.get("git.dirty") == "true":
        lines.append("Its code had uncommitted changes, so the result may differ.")
    return "\n".join(lines)


def _params_at(repository: Repository, rev: str | None) -> dict[str, Any]:
    """Flat params.yaml of a commit; empty if this clone does not have it."""
    if rev is None or repository.commit(rev) is None:
        return {}
    content = repository.show(rev, PARAMS)
    return flatten(parse(PARAMS, content)) if content else {}


def _dvc_exp_run(changes: dict[str, Any]) -> str:
    flags = [f"-S {shlex.quote(f'{key}={value}')}" for key, value in as_text(changes).items()]
    return "  " + " ".join(["dvc exp run", *flags])
