"""`detection sync`: send to MLflow what it missed, or recreate runs that it does not have."""

import argparse
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

STAGES = ("train", "evaluate", "plots")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `detection sync`."""
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="default: the experiment in the workspace"
    )


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags."""
    return sync(args.experiments)


def sync(experiments: list[str]) -> str:
    """Bring the MLflow runs of experiments up to date.

    Args:
        experiments: `workspace`, experiment names or git revisions; none: the workspace. Files of an
            experiment come from git and DVC's cache into a temporary folder; the workspace does not change.

    Returns:
        One line per run.

    Raises:
        DataError: An experiment does not exist, or has no finished training.
        TrackingError: The MLflow store does not answer.
    """
    if not experiments:
        return _line(sync_workspace(params.load()))
    lines = []
    for name in experiments:
        with nullcontext() if name == WORKSPACE else _checked_out(name):
            lines.append(f"{name}: {_line(sync_workspace(params.load()))}")
    return "\n".join(lines)


def _line(result: SyncResult) -> str:
    sent = [f"{result.points} curve points"] if result.points else []
    sent += ["the evaluation"] if result.evaluated else []
    return f"run {result.run_id}: " + (" and ".join(sent) + " sent" if sent else "up to date")


@contextmanager
def _checked_out(name: str) -> Iterator[None]:
    """Change to a temporary folder with an experiment's files, in the environment of its stages."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    repository = Repository()
    named = repository.experiment(name)
    rev = named.rev if named else repository.commit(name)
    if rev is None:
        known = [one.name for one in repository.experiments()]
        raise DataError(f"no experiment or git revision {name!r}; {did_you_mean(name, known)}")
    variables = {"DVC_ROOT": str(repository.root), "DVC_EXP_BASELINE_REV": named.baseline if named else rev}
    variables |= {"DVC_EXP_NAME": name} if named else {}
    with tempfile.TemporaryDirectory(prefix="detection-sync-") as folder:
        files = DVCFileSystem(str(repository.root), rev=rev)
        try:
            document = pipeline.parse(pipeline.PIPELINE, files.read_bytes(pipeline.PIPELINE))
            for path in (pipeline.PIPELINE, pipeline.LOCK, pipeline.PARAMS, *_paths(document)):
                if files.exists(path):
                    Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
                    files.get(path, str(Path(folder, path)), recursive=files.isdir(path))
        except (DvcException, FileNotFoundError) as error:
            raise DataError(
                f"{name} is neither in DVC's cache nor in a remote ({error}); run `dvc pull`"
            ) from None
        with chdir(folder), _environment(variables):
            yield


def _paths(document: dict[str, Any]) -> list[str]:
    """Files and folders that the stages read and write, without those inside another listed folder."""
    stages = [(document.get("stages") or {}).get(stage) or {} for stage in STAGES]
    listed = {Path(path) for stage in stages for path in pipeline.paths(stage, "deps", "outs", "metrics")}
    return sorted(str(path) for path in listed if not listed & set(path.parents))


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
