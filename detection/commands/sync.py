"""`detection sync`: bring to MLflow what it missed while it was away, or a row that it does not have."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import yaml

from detection import params
from detection.errors import TrackingError
from detection.paths import dvc_root
from detection.tracking.sync import Synced, sync_workspace

BESIDE = ("dvc.yaml", "dvc.lock", "params.yaml")
STAGES = ("train", "evaluate", "plots")


def sync(experiments: list[str]) -> str:
    """Sync the workspace, or the experiments that are named; returns a line a row.

    Args:
        experiments: Names, or anything else that DVC takes as a revision. Their files come from git and from
            DVC's cache into a folder that is thrown away; the workspace stays as it is.

    Raises:
        DataError: There is no finished training.
        TrackingError: The store does not answer, or there is no such experiment.
    """
    if not experiments:
        return "\n".join(map(_told, sync_workspace(params.load())))
    lines = []
    for name in experiments:
        with _fetched(name):
            lines += [f"{name}: {_told(one)}" for one in sync_workspace(params.load())]
    return "\n".join(lines)


def _told(done: Synced) -> str:
    what = [f"{done.points} points of its curves"] if done.points else []
    what += ["the evaluation"] if done.evaluated else []
    return f"row {done.run_id}: " + (" and ".join(what) + " sent" if what else "nothing was missing")


@contextmanager
def _fetched(name: str) -> Iterator[None]:
    """Be in a folder that holds an experiment's files, as the stages were under its name."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    root = dvc_root().resolve()
    with tempfile.TemporaryDirectory(prefix="detection-sync-") as folder:
        try:
            files = DVCFileSystem(str(root), rev=name)
            for path in BESIDE:
                files.get_file(path, str(Path(folder, path)))
            for path in _paths(yaml.safe_load(Path(folder, "dvc.yaml").read_text(encoding="utf-8"))):
                if files.exists(path):
                    Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                    files.get(path, str(Path(folder, path)), recursive=files.isdir(path))
        except (DvcException, SCMError, FileNotFoundError) as error:
            raise TrackingError(
                f"the experiment {name} cannot be had: {error}; `dvc exp show` lists them"
            ) from None
        with chdir(folder), _under(_variables(root, name)):
            yield


def _paths(pipeline: dict[str, Any]) -> list[str]:
    """What those stages read and leave that have to do with the row."""
    stages = [pipeline["stages"][stage] for stage in STAGES]
    listed = [one for stage in stages for kind in ("deps", "outs", "metrics") for one in stage.get(kind, [])]
    return sorted({one if isinstance(one, str) else next(iter(one)) for one in listed})


def _variables(root: Path, name: str) -> dict[str, str]:
    """What DVC tells a stage of an experiment by environment variables."""
    listed = _git(root, "for-each-ref", "--format=%(refname)", "refs/exps")
    found = [ref.split("/") for ref in listed if ref.split("/")[-1] == name]
    if found:  # refs/exps/<2 digits of the baseline>/<the others>/<name>
        return {"DVC_ROOT": str(root), "DVC_EXP_NAME": name, "DVC_EXP_BASELINE_REV": "".join(found[0][2:4])}
    return {"DVC_ROOT": str(root), "DVC_EXP_BASELINE_REV": "".join(_git(root, "rev-parse", name))}


def _git(root: Path, *words: str) -> list[str]:
    return subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()


@contextmanager
def _under(variables: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
