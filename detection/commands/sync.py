"""`detection sync`: bring to MLflow what it missed while it was away, or a row that it does not have."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from detection import params, pipeline
from detection.errors import DataError
from detection.experiments.find import WORKSPACE
from detection.experiments.repository import Repository
from detection.text import did_you_mean
from detection.tracking.lifecycle import SyncResult, sync_workspace

BESIDE = ("dvc.yaml", "dvc.lock", "params.yaml")
STAGES = ("train", "evaluate", "plots")


def sync(experiments: list[str]) -> str:
    """Sync the workspace, or the experiments that are named; returns a line a row.

    Args:
        experiments: `workspace`, names, or anything else that DVC takes as a revision. Their files come from
            git and from DVC's cache into a folder that is thrown away; the workspace stays as it is.

    Raises:
        DataError: There is no such experiment, or no finished training of it.
        TrackingError: The store does not answer.
    """
    if not experiments:
        return _told(sync_workspace(params.load()))
    lines = []
    for name in experiments:
        with nullcontext() if name == WORKSPACE else _fetched(name):
            lines.append(f"{name}: {_told(sync_workspace(params.load()))}")
    return "\n".join(lines)


def _told(done: SyncResult) -> str:
    what = [f"{done.points} points of its curves"] if done.points else []
    what += ["the evaluation"] if done.evaluated else []
    return f"row {done.run_id}: " + (" and ".join(what) + " sent" if what else "nothing was missing")


@contextmanager
def _fetched(name: str) -> Iterator[None]:
    """Be in a folder that holds an experiment's files, as the stages were under its name."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    repository = Repository()
    named = repository.experiment(name)
    rev = named.rev if named else repository.commit(name)
    if rev is None:
        known = [one.name for one in repository.experiments()]
        raise DataError(f"there is no experiment or git revision {name!r}; {did_you_mean(name, known)}")
    variables = {"DVC_ROOT": str(repository.root), "DVC_EXP_BASELINE_REV": named.baseline if named else rev}
    variables |= {"DVC_EXP_NAME": name} if named else {}
    with tempfile.TemporaryDirectory(prefix="detection-sync-") as folder:
        files = DVCFileSystem(str(repository.root), rev=rev)
        try:
            for path in [*BESIDE, *_paths(pipeline.parse("dvc.yaml", files.read_bytes("dvc.yaml")))]:
                if files.exists(path):
                    Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                    files.get(path, str(Path(folder, path)), recursive=files.isdir(path))
        except (DvcException, FileNotFoundError) as error:
            raise DataError(f"{name} is neither in DVC's cache nor in a remote ({error}); dvc pull") from None
        with chdir(folder), _under(variables):
            yield


def _paths(document: dict[str, Any]) -> list[str]:
    """Files and folders that these stages read and write; nothing inside a folder that is listed itself."""
    stages = [(document.get("stages") or {}).get(stage) or {} for stage in STAGES]
    listed = {Path(path) for stage in stages for path in pipeline.paths(stage, "deps", "outs", "metrics")}
    return sorted(str(path) for path in listed if not listed & set(path.parents))


@contextmanager
def _under(variables: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
