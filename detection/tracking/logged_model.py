"""LoggedModel of a training: MLflow's entity for a detector, which test scores and registered versions link to.

Its artifacts are a pyfunc model, so that `mlflow.pyfunc.load_model("models:/<model id>")` needs no promotion.
Imports mlflow inside functions only.
"""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detection.files import DETECTOR, WEIGHTS_JSON, md5, read_json, sha256
from detection.params import Params
from detection.tracking.artifacts import Artifacts, Progress, files_below
from detection.tracking.client import (
    EVALUATION_KEY,
    FORKED_FROM,
    SETTLED,
    TRAINING_ID,
    await_others,
    find_run,
    is_fork,
    start_digest,
    start_tags,
)
from detection.tracking.model_folder import write_model_folder
from detection.tracking.store import Store

DIGEST, SHA256, START_DIGEST = "digest.detector", "digest.sha256", "start_digest"
"""Tags: md5 of the detector's file, as in dvc.lock; its SHA-256; registry URI or published name of start weights."""
LINEAGE = (
    *(TRAINING_ID, "dataset", "dvc.exp_name", "dvc.baseline_rev", "git.dirty", "mlflow.user"),
    *("mlflow.source.name", "mlflow.source.type"),
    *(f"mlflow.source.git.{key}" for key in ("commit", "branch", "repoURL")),
)
"""Tags that a model has from its run."""
FORBIDDEN_IN_NAME = re.compile(r"""[/:.%"']""")
DATA_FOLDER = "data"
"""Folder of a pyfunc model that holds the detector's file."""
WRITE_TIMEOUT_S = 300.0
"""Upper limit for writing the model's folder on a busy machine, which includes the import of half of MLflow."""
UNSUPPORTED = ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "NOT_IMPLEMENTED")
"""Error codes of a server of MLflow 2, which has no LoggedModels."""
log = logging.getLogger(__name__)


@contextmanager
def tolerate_old_server(consequence: str) -> Iterator[None]:
    """Log a warning where the server is one of MLflow 2."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in UNSUPPORTED:
            raise
        log.warning("the MLflow server has no LoggedModels, it needs version 3: %s", consequence)


def find_or_create(store: Store, run: Any, detector: Path, training_id: str | None, *, contested: bool = True) -> Any:
    """LoggedModel of a run's detector (`mlflow.entities.LoggedModel`); a new one is PENDING.

    A training is one model, however often it is resumed, sent or evaluated; other weights are another model. Of two
    that two clones create at once, one is kept, see `client.create_run`.

    Args:
        store: The store.
        run: Run of the training or of an evaluation, with its params and tags.
        detector: Detector file.
        training_id: Id of the training.
        contested: Another clone may create it at the same time.
    """
    digest, tags = md5(detector), {key: run.data.tags[key] for key in LINEAGE if key in run.data.tags}
    tags |= {DIGEST: digest, SHA256: sha256(detector)} | ({TRAINING_ID: training_id} if training_id else {})
    found = _search(store, digest, training_id)
    if found is not None:
        return found
    params = {key: value for key, value in run.data.params.items() if not key.startswith("evaluate.")}
    params.pop(EVALUATION_KEY, None)
    source = run.data.tags.get(FORKED_FROM) if is_fork(run) else run.info.run_id
    model = create(store, params.get("model", "detector"), source, tags, params)
    if not contested:
        return model
    await_others(store)
    first = _search(store, digest, training_id)
    if first is not None and first.model_id != model.model_id:
        store.client.delete_logged_model(model.model_id)
        return first
    store.client.set_logged_model_tags(model.model_id, {SETTLED: TRAINING_ID})
    return model


def create(store: Store, name: str, run_id: str | None, tags: Mapping[str, str], params: Mapping[str, str]) -> Any:
    """Create a LoggedModel of this project; its status is PENDING."""
    return store.client.create_logged_model(
        store.experiment,
        name=FORBIDDEN_IN_NAME.sub("_", name),
        source_run_id=run_id,
        tags=dict(tags),
        params=dict(params),
        model_type="detector",
    )


def find_by_digest(store: Store, digest: str) -> Any:
    """LoggedModel of a detector by one of its digests; None if there is none."""
    for tag in (DIGEST, SHA256, START_DIGEST):
        if models := store.client.search_logged_models([store.experiment], f"tags.`{tag}` = '{digest}'"):
            return _first(models)
    return None


def _search(store: Store, digest: str, training_id: str | None) -> Any:
    condition = f"tags.`{DIGEST}` = '{digest}'"
    condition += f" AND tags.`{TRAINING_ID}` = '{training_id}'" if training_id else ""
    models = store.client.search_logged_models([store.experiment], condition)
    return _first(models) if models else None


def _first(models: Any) -> Any:
    by_age = sorted(models, key=lambda model: (model.creation_timestamp, model.model_id))
    return min(by_age, key=lambda model: SETTLED not in model.tags)


def link(store: Store, run: Any, model: Any, step: int = 0) -> None:
    """Link a model to its training's run as an output, to the run of another evaluation as an input.

    Args:
        store: The store.
        run: The run, as `get_run` returns it.
        model: The model.
        step: Number of steps of the training.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    outputs = run.outputs.model_outputs if run.outputs else []
    inputs = run.inputs.model_inputs if run.inputs else []
    if any(one.model_id == model.model_id for one in [*outputs, *inputs]):
        return
    run_id, training_id = run.info.run_id, run.data.tags.get(TRAINING_ID)
    if model.source_run_id == run_id or (training_id and training_id == model.tags.get(TRAINING_ID)):
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    else:
        store.client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])


def fill(store: Store, model: Any, detector: Path, example: bytes | None, progress: Progress | None = None) -> None:
    """Send a model's artifacts where they are missing, and set it READY, or FAILED if the server refuses some.

    Args:
        store: The store.
        model: The model, as it was found or created.
        detector: Detector file.
        example: Image file, the input example; None: a gray image.
        progress: Progress to report to.
    """
    if model.status == "READY":
        return
    artifacts = Artifacts(store.client, model.artifact_location, progress)
    with tempfile.TemporaryDirectory(prefix="detection-model-") as scratch:
        folder = Path(scratch, "model")
        artifacts.progress.expect(WRITE_TIMEOUT_S)
        write_model_folder(folder, detector, run_id=model.source_run_id, model_id=model.model_id, example=example)
        artifacts.send_all(files_below(folder), only_missing=bool(artifacts.sizes(None)))
    store.client.finalize_logged_model(model.model_id, "FAILED" if artifacts.refused else "READY")


def model_of(store: Store, run_id: str) -> Any:
    """LoggedModel whose detector a run trained or evaluated; None without one."""
    run = store.client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    inputs = run.inputs.model_inputs if run.inputs and is_fork(run) else []
    for one in (*outputs, *inputs):
        model = store.client.get_logged_model(one.model_id)
        if DIGEST in model.tags:
            return model
    return None


def log_start_model(store: Store, run: Any, params: Params) -> None:
    """Log the detector that a training starts from as its run's model input; one without a LoggedModel gets one."""
    from mlflow.entities import LoggedModelInput

    digest = start_digest(read_json(WEIGHTS_JSON).get("start", {}))
    if not digest or (run.inputs and run.inputs.model_inputs):
        return
    with tolerate_old_server("the start detector is not the run's model input"):
        found = find_by_digest(store, digest)
        if found is None:
            tags = start_tags()
            source = find_run(store, tags.get("start.run_id"))
            run_id = source.info.run_id if source else None
            model = create(store, params.model, run_id, {START_DIGEST: digest} | tags, {})
            found = store.client.finalize_logged_model(model.model_id, "READY")
        store.client.log_inputs(run.info.run_id, models=[LoggedModelInput(found.model_id)])


def read_detector(store: Store, run_id: str) -> bytes | None:
    """Detector file of the model that a run trained or evaluated; None without one."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model = None
    with tolerate_old_server("the detector is a file of its run"):
        model = model_of(store, run_id)
    if model is None or model.status != "READY":
        return None
    repository = get_artifact_repository(model.artifact_location, tracking_uri=store.uri)
    with tempfile.TemporaryDirectory(prefix="detection-file-") as folder:
        return Path(repository.download_artifacts(f"{DATA_FOLDER}/{DETECTOR.name}", folder)).read_bytes()
