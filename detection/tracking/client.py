"""Create, find, reopen and fill an MLflow run. Imports mlflow inside functions only."""

import getpass
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detection import pipeline
from detection.files import TRAIN_RUN_JSON, WEIGHTS_JSON, read_json, write_json
from detection.params import Params
from detection.tracking.store import Store, process_tags

PARAMS_PER_CALL = 100
"""MLflow's limit."""
REPLACES = "replaces_run"
"""Tag: run id in `run.json` that this run replaces, since the store does not have a run of that id."""
START_DIGEST = "start_digest"
"""Tag of a LoggedModel: digest of a detector that trainings start from, or its published name."""
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


def create_run(store: Store, params: Params, stage: str, tags: Mapping[str, str]) -> Any:
    """Create a run with its name and tags; returns an `mlflow.entities.Run`."""
    tags = origin_tags(params, stage) | process_tags() | dict(tags)
    return store.client.create_run(store.experiment, run_name=run_name(params), tags=tags)


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
    """Newest run with that tag; None if there is none."""
    runs = store.client.search_runs([store.experiment], f"tags.{tag} = '{value}'")
    return runs[0] if runs else None


def reopen(store: Store, run: Any, tags: Mapping[str, str] = {}) -> None:
    """Set a run RUNNING, owned by this process and named after the current experiment."""
    from mlflow.entities import RunTag

    # Tags first: without the new process id another process would mark the run as KILLED.
    tags = process_tags() | _experiment_tags(run.data.tags) | dict(tags)
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
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    values, splits = run_params(params) | dict(recorded), ["train", "val", "test"]
    if not evaluated:
        values = {key: value for key, value in values.items() if not key.startswith("evaluate.")}
        splits = splits[:2]
    new = [Param(key, value) for key, value in values.items() if key not in run.data.params]
    for start in range(0, len(new), PARAMS_PER_CALL):
        store.client.log_batch(run.info.run_id, params=new[start : start + PARAMS_PER_CALL])

    md5 = pipeline.locked_md5()  # of the packed index: the dataset's digest
    logged = {one.dataset.digest for one in (run.inputs.dataset_inputs if run.inputs else ())}
    source = json.dumps({"path": params.data.path, "format": params.data.format})
    inputs = []
    for split in splits:
        digest = md5.get(f"data/prepared/{split}.npz")
        if digest and digest not in logged:
            dataset = Dataset(name=params.dataset, digest=digest, source_type="local", source=source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    if inputs:
        store.client.log_inputs(run.info.run_id, datasets=inputs)
    _log_start_model(store, run, params)


def start_digest(source: Mapping[str, Any]) -> str | None:
    """Hash of the weights that a resolved `start.from` names, else their registry URI or published name."""
    return next((source[key] for key in ("sha256", "md5", "uri", "weights") if source.get(key)), None)


def _log_start_model(store: Store, run: Any, params: Params) -> None:
    """Log the detector that the training starts from as the run's model input, a LoggedModel by its digest."""
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    tags = _start_tags()
    digest = start_digest(read_json(WEIGHTS_JSON).get("start", {}))
    if not digest or (run.inputs and run.inputs.model_inputs):
        return
    try:
        found = store.client.search_logged_models([store.experiment], f"tags.`{START_DIGEST}` = '{digest}'")
        if not found:
            source = find_run(store, tags.get("start.run_id"))
            model = store.client.create_logged_model(
                store.experiment,
                name=params.model,
                source_run_id=source.info.run_id if source else None,
                tags={START_DIGEST: digest} | tags,
                model_type="detector",
            )
            found = [store.client.finalize_logged_model(model.model_id, "READY")]
        store.client.log_inputs(run.info.run_id, models=[LoggedModelInput(found[0].model_id)])
    except MlflowException as error:  # a server of MLflow 2 has no LoggedModels
        log.warning("the start detector is not logged as the run's model input: %s", error)


TRAINING_ID = "training_id"
"""Tag and key of `environment.json`: id of a training, the same in every resume."""
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
        "mlflow.user": _user(),
    }
    return {key: value for key, value in tags.items() if value} | _start_tags() | _md5_tags(stage)


def _start_tags() -> dict[str, str]:
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
