"""From a row of MLflow back to its experiment."""

import shlex
from typing import Any

from detection.errors import DataError
from detection.experiments.contents import RunFiles, read_params
from detection.experiments.find import commits_of, experiments_of
from detection.experiments.repository import DvcExperiment, Repository
from detection.experiments.runs import open_store, run_of
from detection.params import schema
from detection.params.reader import flatten
from detection.pipeline import NOT_CODE
from detection.tracking.naming import as_text

KEPT = "refs/exps/apply/stash"
"""Where DVC keeps what the workspace was before it brings an experiment back."""
MANY = 12
"""So many changed params are still readable on a command line."""


def restore(name: str, repository: Repository) -> str:
    """Bring the experiment of a row into the workspace, or say what would.

    Args:
        name: Id or name of a row, or the name of an experiment.
        repository: This repository.

    Returns:
        What was done, or the commands that bring it back.

    Raises:
        DataError: There is no such row, or uncommitted work would be lost.
    """
    named = repository.experiment(name)
    if named is not None:
        return _apply(named, repository)
    store = open_store()
    row = run_of(store, name) if store else None
    if store is None or row is None:
        raise DataError(f"there is no row and no experiment {name!r}; `make ui` and `dvc exp show` list them")
    for one in experiments_of(row, repository):
        return _apply(one, repository)
    for rev in commits_of(row, repository):
        return (
            f"no experiment of DVC holds the row {row.info.run_name}, but a commit does:\n"
            f"  git checkout {rev[:10]} && dvc checkout"
        )
    return _recipe(row, RunFiles(store, row.info.run_id, repository.root), repository)


def _apply(named: DvcExperiment, repository: Repository) -> str:
    changed = repository.changed(".", *NOT_CODE)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DataError(
            f"{', '.join(changed[:3])}{more}: changes that are not committed, and that bringing {named.name} "
            "back would overwrite; commit them, or put them aside: git stash"
        )
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    params = repository.root / "params.yaml"
    edited = params.read_bytes() if repository.changed("params.yaml") else None
    try:
        with Repo(str(repository.root)) as repo:
            repo.experiments.apply(named.rev)
    except DvcException as error:
        raise DataError(f"dvc exp apply {named.name}: {error}") from None
    lines = [f"{named.name} is in the workspace: its params.yaml, dvc.lock, reports/ and models/detector.pt"]
    head = repository.head()
    if named.baseline != head:
        lines.append(f"It started from the commit {named.baseline[:7]}: the code is of that commit too.")
    if edited is not None and edited != params.read_bytes():
        lines.append(
            "params.yaml had changes that were not committed; to see it as it was, until the next apply:\n"
            f"  git show {KEPT}:./params.yaml"
        )
    lines.append("To go back: git checkout . && dvc checkout")
    return "\n".join(lines)


def _recipe(row: Any, files: RunFiles, repository: Repository) -> str:
    """The commands that make the row's experiment again."""
    tags, made = row.data.tags, row.data.params
    rev = tags.get("dvc.baseline_rev") or tags.get("mlflow.source.git.commit")
    lines = [f"no experiment of DVC holds the row {row.info.run_name} any more; this makes it again:"]
    if rev is None:
        lines.append("  (the row does not say from which commit)")
    elif repository.commit(rev) is None:
        lines.append(f"  git fetch --all         # the commit {rev[:10]} is not in this clone")
    before = _params_at(repository, rev)
    sections = flatten(read_params(files))
    if rev is not None:
        lines.append(f"  git checkout {rev[:10]}")
    changes = {key: value for key, value in sections.items() if before.get(key) != value}
    if sections and before and len(changes) <= MANY and sections.keys() == before.keys():
        lines.append(_run(changes))
    elif sections:
        lines.append(f"  mlflow artifacts download -r {row.info.run_id} -a params.yaml -d .")
        lines.append("  dvc exp run")
    else:
        lines.append(_run({key: made[key] for key in ("model", "dataset", "seed") if key in made}))
        lines.append("The row has no params.yaml: `make ui` shows its other params.")
    if tags.get("git.dirty") == "true":
        lines.append("Its code had changes that were not committed, so that the result may differ.")
    return "\n".join(lines)


def _params_at(repository: Repository, rev: str | None) -> dict[str, Any]:
    """`params.yaml` of a commit, flat; empty where this clone does not have it."""
    if rev is None or repository.commit(rev) is None:
        return {}
    content = repository.show(rev, "params.yaml")
    return flatten(schema.read(content.decode())) if content else {}


def _run(changes: dict[str, Any]) -> str:
    words = [f"-S {shlex.quote(f'{key}={value}')}" for key, value in as_text(changes).items()]
    return "  " + " ".join(["dvc exp run", *words])
