"""Commands on the workspace: check, summary, sync."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from detection import params, pipeline
from detection.commands import Command
from detection.data.sources.layout import check_present
from detection.errors import DataError
from detection.experiments.find import WORKSPACE, Experiment
from detection.experiments.repository import Repository, Workspace
from detection.experiments.start_source import resolve
from detection.files import EVALUATION_RUN_JSON, REPORT_PAGE, REPORTS_EVALUATION, REPORTS_TRAIN, read_json
from detection.params.reader import read_yaml
from detection.text import did_you_mean
from detection.tracking.client import read_run_id
from detection.tracking.lifecycle import SyncResult, sync_workspace

SYNCED_STAGES = ("train", "evaluate", "plots")
METRICS = (
    ("COCO", ("AP", "AP50", "AP75")),
    ("by size", ("AP_small", "AP_medium", "AP_large")),
    ("recall", ("AR1", "AR10", "AR100")),
    ("by size", ("AR_small", "AR_medium", "AR_large")),
    ("VOC", ("voc_ap50_11pt", "voc_ap50_area")),
)


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def check() -> str:
    """Check params.yaml, the chosen dataset and `start.from`, and list the overridden values with their source.

    Raises:
        ParamsError: An invalid key, name or value in params.yaml.
        DataError: The dataset, or the detector to start from, is missing.
        TrackingError: The registry cannot be read.
    """
    chosen = params.load()
    check_present(chosen.dataset, chosen.data)
    lines = [f"params.yaml is valid: {chosen.model} on {chosen.dataset}"]
    lines += [f"  {one.key} = {one.value}  ({one.source})" for one in chosen.overrides]
    if chosen.start.from_ is not None:
        source = resolve(chosen)
        lines.append(f"  starts from {source['from']} ({source['type']}), and has its anchors and sizes of layers")
    return "\n".join(lines)


def summary() -> str:
    """Score table, path of the report, and the next commands.

    Raises:
        DataError: The workspace has no evaluation, or one of another detector.
    """
    scores = _read(REPORTS_EVALUATION / "metrics.json")
    recipe = _read(REPORTS_TRAIN / "recipe.json")
    Experiment(name=WORKSPACE, files=Workspace(Path())).check_scored()
    lines = [f"{recipe['model']} on {recipe['dataset']}, scores on the test split", ""]
    for title, names in METRICS:
        cells = "".join(f"{name:>16} {_number(scores.get(name))}" for name in names)
        lines.append(f"  {title:<8}{cells}")
    lines += ["", f"  report            {REPORT_PAGE.resolve()}", ""]
    lines += [f"  {what:<17} {command}" for what, command in _next_commands(recipe["model"])]
    return "\n".join(lines)


def _next_commands(model: str) -> list[tuple[str, str]]:
    others = [name for name in read_yaml("params.yaml")["models"] if name != model]
    other = "retinanet" if "retinanet" in others else (others or [model])[0]
    return [
        ("activate", "source .venv/bin/activate"),
        ("set the baseline", 'git add dvc.lock reports && git commit -m "baseline"'),
        ("run another one", f"dvc exp run -S model={other}"),
        ("compare", "make compare    (with curves and images: make ui)"),
        ("use the detector", "detection predict IMAGE_OR_FOLDER"),
    ]


def _number(value: float | None) -> str:
    """Three decimals; a dash for a missing value or NaN."""
    return "    -" if value is None or value != value else f"{value:.3f}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; run `dvc repro` first")
    return read_json(path)


def _add_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: the experiment in the workspace")


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
        name = _workspace_experiment()
        with _environment({"DVC_EXP_NAME": name} if name else {}):
            return _line(sync_workspace(params.load()))
    lines = []
    for name in experiments:
        with nullcontext() if name == WORKSPACE else _checked_out(name):
            lines.append(f"{name}: {_line(sync_workspace(params.load()))}")
    return "\n".join(lines)


def _workspace_experiment() -> str:
    """Name of the DVC experiment that is in the workspace, as after `detection apply`; empty without one."""
    run_id = read_run_id(EVALUATION_RUN_JSON) or read_run_id()
    if not run_id:
        return ""
    repository = Repository()
    return next((one.name for one in repository.experiments() if run_id in repository.run_ids(one.rev)[:1]), "")


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
            raise DataError(f"{name} is neither in DVC's cache nor in a remote ({error}); run `dvc pull`") from None
        with chdir(folder), _environment(variables):
            yield


def _paths(document: dict[str, Any]) -> list[str]:
    """Files and folders that the stages read and write, without those inside another listed folder."""
    stages = [(document.get("stages") or {}).get(stage) or {} for stage in SYNCED_STAGES]
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


COMMANDS = {
    "check": Command(_no_arguments, lambda args: check()),
    "summary": Command(_no_arguments, lambda args: summary()),
    "sync": Command(_add_sync, lambda args: sync(args.experiments)),
}
