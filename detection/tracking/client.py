"""Create, find, reopen and fill an MLflow run. Imports mlflow inside functions only."""

import getpass
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detection import pipeline
from detection.files import TRAIN_RUN_JSON, WEIGHTS_JSON, read_json, write_json
from detection.params import Params
from detection.tracking.dataset_inputs import SPLITS, log_datasets
from detection.tracking.store import Store, process_tags

PARAMS_PER_CALL = 100
"""MLflow's limit."""
TRAINING_ID = "training_id"
"""Tag and key of `environment.json`: id of a training, the same in every resume."""
EVALUATION_KEY = "evaluation_key"
"""Tag and param: hash of the settings, code and weights of the evaluation that a run holds."""
FORKED_FROM = "forked_from"
"""Tag: run of the training, on the run of another evaluation of its detector."""
REPLACES = "replaces_run"
"""Tag: run id in `run.json` that this run replaces, since the store does not have a run of that id."""
SETTLED = "settled"
"""Tag: this run is the one of its key; one that another clone creates later gives way to it."""
SETTLE_S = 2.0
"""Longer than a server takes from the answer of a search to the next tag."""
RUN_ID = re.compile("[0-9a-f]{32}")
log = logging.getLogger(__name__)


def write_run_id(path: Path, run_id: str | None, *, unsent: bool = False) -> None:
    """Write a `run.json`; `unsent`: an id that the run will replace when the server is back."""
    write_json(path, {"run_id": run_id} | ({"unsent": True} if unsent else {}))


def read_run_id(path: Path = TRAIN_RUN_JSON) -> str | None:
    """Run id of a `run.json`; None without a run."""
    run_id = read_json(path).get("run_id")
    return str(run_id) if run_id else None


def is_unsent(path: Path) -> bool:
    """Return True if the server was down when the `run.json` was written."""
    return bool(read_json(path).get("unsent"))


def create_run(store: Store, params: Params, stage: str, tags: Mapping[str, str], key: str | None = None) -> Any:
    """Create a run with its name and tags, or find the one that another clone has created meanwhile.

    A file lock does not cover other machines, and clocks differ. With a `key` this is Fischer's mutual exclusion:
    create the run, wait, search. A run with the tag `settled` wins, else the oldest. A clone tags its run if it wins
    and deletes it otherwise.

    Args:
        store: The store.
        params: The experiment.
        stage: Stage that creates the run.
        tags: More tags.
        key: Name of the tag that identifies the run where another clone may create it too.

    Returns:
        An `mlflow.entities.Run`.
    """
    tags = origin_tags(params, stage) | process_tags() | dict(tags)
    run = store.client.create_run(store.experiment, run_name=run_name(params), tags=tags)
    if key is None:
        return run
    await_others(store)
    first = find_by_tag(store, key, tags[key])
    if first is None or first.info.run_id == run.info.run_id:
        store.client.set_tag(run.info.run_id, SETTLED, key)
        return run
    store.client.delete_run(run.info.run_id)
    log.info("MLflow run %s: another clone has created %s at the same time", run.info.run_id, first.info.run_id)
    return first


def await_others(store: Store) -> None:
    """Wait until entities that other clones create at the same time are visible and settled."""
    if not store.uri.startswith("sqlite:"):  # all who share the file hold its lock
        time.sleep(SETTLE_S)


def find_run(store: Store, run_id: str | None) -> Any:
    """Run with that id, or the run that replaces it; None if the store has neither."""
    from mlflow.exceptions import MlflowException

    if run_id is None or not RUN_ID.fullmatch(run_id):  # MLflow may refuse to look up a name as an id
        return None
    try:
        run = store.client.get_run(run_id)
        if run.info.lifecycle_stage == "active":
            return run
    except MlflowException as error:
        # With basic auth, an id that the server does not know is denied to everybody but the administrator.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
    return find_by_tag(store, REPLACES, run_id)


def find_training(store: Store, run_id: str | None, training_id: str | None) -> Any:
    """Run of a training by its id, or by its tag where `run.json` was lost; None if there is none."""
    run = find_run(store, run_id)
    return find_by_tag(store, TRAINING_ID, training_id) if run is None and training_id else run


def find_by_tag(store: Store, tag: str, value: str) -> Any:
    """Settled or else oldest run with that tag; None if there is none."""
    order = ["attributes.start_time ASC"]
    runs = store.client.search_runs([store.experiment], f"tags.{tag} = '{value}'", order_by=order)
    by_age = sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
    return min(by_age, key=lambda run: SETTLED not in run.data.tags, default=None)


def claim(store: Store, run: Any, key: str) -> bool:
    """Claim a training's run for an evaluation; returns False if it belongs to another one.

    The first claim wins, also among several clones: MLflow never changes a param of a run.
    """
    from mlflow.exceptions import MlflowException

    if run.data.tags.get(EVALUATION_KEY, key) != key:  # of an earlier version of this project
        return False
    try:
        store.client.log_param(run.info.run_id, EVALUATION_KEY, key)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True


def is_fork(run: Any) -> bool:
    """Return True for the run of another evaluation, which is not its training's; also without the training's run."""
    tags = run.data.tags
    return FORKED_FROM in tags or (EVALUATION_KEY in tags and TRAINING_ID not in tags)


def reopen(store: Store, run: Any, tags: Mapping[str, str] = {}, *, rename: bool = True) -> None:
    """Set a run RUNNING, owned by this process and, with `rename`, named after the current experiment."""
    from mlflow.entities import RunTag

    # Tags first: without the new process id another process would mark the run as KILLED.
    tags = process_tags() | (_experiment_tags(run.data.tags) if rename else {}) | dict(tags)
    store.client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    store.client.update_run(run.info.run_id, status="RUNNING")
    if "error" in run.data.tags:
        store.client.delete_tag(run.info.run_id, "error")


def _experiment_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Name of the current experiment, and the names of all experiments that share the run."""
    before, now = tags.get("dvc.exp_name", ""), pipeline.experiment_name()
    if not now or now == before:
        return {}
    names = dict.fromkeys([*tags.get("dvc.exp_names", before).split(","), now])
    return {"dvc.exp_name": now, "dvc.exp_names": ",".join(name for name in names if name)}


def describe(store: Store, run: Any, params: Params, recorded: Mapping[str, str], *, evaluated: bool = False) -> None:
    """Log the params and dataset inputs that a run lacks; MLflow does not change existing params.

    Args:
        store: The store.
        run: The run as it was found.
        params: The experiment.
        recorded: Params as the training recorded them, where `params` may have changed since.
        evaluated: Also log the params of `evaluate` and the test split.
    """
    from mlflow.entities import Param

    values = run_params(params) | dict(recorded)
    if not evaluated:
        values = {key: value for key, value in values.items() if not key.startswith("evaluate.")}
    new = [Param(key, value) for key, value in values.items() if key not in run.data.params]
    for start in range(0, len(new), PARAMS_PER_CALL):
        store.client.log_batch(run.info.run_id, params=new[start : start + PARAMS_PER_CALL])
    log_datasets(store, run, params, SPLITS if evaluated else SPLITS[:2])


def start_digest(source: Mapping[str, Any]) -> str | None:
    """Hash of the weights that a resolved `start.from` names, else their registry URI or published name."""
    return next((source[key] for key in ("sha256", "md5", "uri", "weights") if source.get(key)), None)


FORBIDDEN = re.compile(r"[^\w\-. /]")
MAX_NAME_LENGTH = 200
"""Characters of a metric's name; MLflow accepts 250."""


def metric_name(name: str) -> str:
    """Metric name that MLflow accepts: letters of any script, digits, `_-. ` and `/` as separator."""
    parts = FORBIDDEN.sub("_", name)[:MAX_NAME_LENGTH].split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def metric_names(names: Iterable[str]) -> dict[str, str]:
    """Unique metric name per name: classes `C#` and `C+` become `C_` and `C__`."""
    unique: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        key = metric_name(name)
        while key in taken:
            key += "_"
        taken.add(key)
        unique[name] = key
    return unique


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Finite values by unique metric name."""
    names = metric_names(values)
    return {names[name]: float(value) for name, value in values.items() if math.isfinite(value)}


def run_name(params: Params) -> str:
    """`DVC_EXP_NAME`, else `<model>-<dataset>-<short commit>`."""
    return pipeline.experiment_name() or f"{params.model}-{params.dataset}-{pipeline.commit()[:7] or 'nogit'}"


def run_params(params: Params) -> dict[str, str]:
    """All params as text, spelled as in `params.yaml`: `null`, `true`, `[16, 22]`."""
    return as_text(params.flat())


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Param names and values as MLflow stores them."""
    return {metric_name(key): value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def origin_tags(params: Params, stage: str) -> dict[str, str]:
    """Tags that lead from a run back to its experiment: model, dataset, DVC, git, md5 of the inputs."""
    changes = pipeline.run_quiet("git", "status", "--porcelain", "--", ".", *pipeline.NOT_CODE)
    tags = {
        "model": params.model,
        "dataset": params.dataset,
        "dvc.stage": os.environ.get("DVC_STAGE", stage),
        "dvc.exp_name": pipeline.experiment_name(),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc.workspace": str(Path.cwd()),
        "git.dirty": str(bool(changes)).lower(),
        "mlflow.source.name": f"stages.{stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": pipeline.commit(),
        "mlflow.source.git.branch": pipeline.branch(),
        "mlflow.source.git.repoURL": pipeline.remote(),
        "mlflow.user": _user(),
    }
    return {key: value for key, value in tags.items() if value} | start_tags() | _md5_tags(stage)


def start_tags() -> dict[str, str]:
    """Tags that lead to the detector that the training started from: `start.from`, `start.run_id`, ..."""
    source = read_json(WEIGHTS_JSON).get("start", {})
    return {f"start.{key}": str(value) for key, value in source.items() if value and key != "classes"}


def environment_tags(environment: Mapping[str, str]) -> dict[str, str]:
    """Tags of a training's `environment.json`: its id, and versions and devices as `env.<key>`."""
    return {key if key == TRAINING_ID else f"env.{key}": str(value) for key, value in environment.items()}


def _md5_tags(stage: str) -> dict[str, str]:
    """md5 of the stage's dependencies that earlier stages made; their `dvc.lock` entries are up to date."""
    md5 = pipeline.locked_md5()
    return {metric_name(f"dvc.md5.{path}"): md5[path] for path in pipeline.dependencies(stage) if path in md5}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""
