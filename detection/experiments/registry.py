"""MLflow's model registry: register an experiment's detector as a pyfunc model, and download it again.

A model is a folder with weights, code, signature, input example, requirements and model card. Its version has
tags that lead back to run, commit and data.
"""

import importlib.metadata
import io
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import detection
from detection.errors import DataError, TrackingError
from detection.experiments.find import Experiment, find, open_store
from detection.experiments.repository import Repository, read_json
from detection.files import DETECTOR, MODEL_CARD, PREPARED, REPORTS_DATASET, REPORTS_EVALUATION, REPORTS_TRAIN
from detection.pipeline import locked_outs
from detection.tracking.client import find_run
from detection.tracking.store import Store, import_mlflow, tracking_uri

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

ARTIFACT_FOLDER = "registered"
"""Folder of the run's artifacts that holds the model."""
MAX_DESCRIPTION_LENGTH = 5000
"""Characters of a version's description; the limit of MLflow's database."""
REQUIREMENTS = ("mlflow", "msgspec", "numpy", "pandas", "pillow", "torch", "torchvision")
SCORES = ("AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Content of a new model version."""

    detector: bytes
    """Detector file."""
    card: str
    """Model card, Markdown."""
    example: bytes
    """Image file, the input example."""
    run_id: str
    tags: dict[str, str]


def promote(experiment: Experiment, name: str | None, alias: str) -> str:
    """Register an experiment's detector and point an alias at it.

    A detector that is registered already does not get a second version.

    Args:
        experiment: Trained, evaluated and tracked.
        name: Name of the registered model; None: `detector-<dataset>`.
        alias: Alias of the version, for `models:/<name>@<alias>`.

    Returns:
        Message with the version and the call that loads it.

    Raises:
        DataError: The experiment has no detector or no scores.
        TrackingError: The store does not have the experiment's run, or MLflow refuses the name or alias.
    """
    from mlflow.exceptions import MlflowException

    store, candidate = open_store(), gather(experiment)
    run = find_run(store, candidate.run_id) if store else None
    if store is None or run is None:
        raise TrackingError(
            f"MLflow does not have the run {candidate.run_id} of {experiment.name}; send it: detection sync"
        )
    candidate = replace(candidate, run_id=run.info.run_id)  # which may replace the recorded one
    name = name or f"detector-{candidate.tags['dataset']}"
    try:
        version, is_new = _find_or_create_version(store, run, candidate, name)
        store.client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise TrackingError(f"MLflow refuses {name}@{alias}: {str(error).splitlines()[0]}") from None
    state = "is now" if is_new else "was registered already as"
    return (
        f"{experiment.name} {state} version {version} of {name}, and {alias} points at it\n"
        f'  mlflow.pyfunc.load_model("models:/{name}@{alias}")'
    )


def gather(experiment: Experiment) -> Candidate:
    """Read an experiment's detector, model card, input example, and lineage tags.

    Raises:
        DataError: The detector or its scores are missing.
        TrackingError: The experiment has no run.
    """
    files, run_id = experiment.files, experiment.run_id()
    detector, metrics = files.read(str(DETECTOR)), read_json(files, f"{REPORTS_EVALUATION}/metrics.json")
    if detector is None or not metrics:
        raise DataError(f"{experiment.name} has no evaluated detector; dvc exp run trains and evaluates one")
    experiment.check_scored()
    if run_id is None:
        raise TrackingError(f"{experiment.name} has no MLflow run; create it: detection sync")
    recipe, data = (read_json(files, f"{REPORTS_TRAIN}/recipe.json"), read_json(files, f"{REPORTS_DATASET}/card.json"))
    md5 = locked_outs(files.read("dvc.lock"))
    values = {
        "model": recipe.get("model"),
        "dataset": recipe.get("dataset"),
        "license": data.get("license"),
        "dvc.experiment": experiment.name,
        "dvc.rev": experiment.rev,
        "digest.detector": md5.get(str(DETECTOR)),
        "digest.data": data.get("digest"),
        "digest.test": md5.get(f"{PREPARED}/test.npz"),
        **{f"test/{key}": f"{metrics[key]:.4f}" for key in SCORES if metrics.get(key) is not None},
    }
    tags = {key: str(value) for key, value in values.items() if value}
    lines = [f"# {tags.get('model')} on {tags.get('dataset')}", "", f"Classes: {', '.join(data.get('classes', []))}."]
    card = (
        files.read(str(MODEL_CARD)) or "\n".join([*lines, "", *(f"- {k}: {v}" for k, v in tags.items()), ""]).encode()
    )
    return Candidate(detector=detector, card=card.decode(), example=_example(experiment), run_id=run_id, tags=tags)


def _find_or_create_version(store: Store, run: Any, candidate: Candidate, name: str) -> tuple[str, bool]:
    """Version of this detector, and True if it was created."""
    client, tags, digest = store.client, candidate.tags, "digest.detector"
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == candidate.run_id and version.tags.get(digest) == tags.get(digest):
            return str(version.version), False
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Detects the objects of {tags['dataset']}.")
    with tempfile.TemporaryDirectory(prefix="detection-promote-") as folder:
        _save(Path(folder, ARTIFACT_FOLDER), candidate)
        client.log_artifacts(candidate.run_id, str(Path(folder, ARTIFACT_FOLDER)), ARTIFACT_FOLDER)
    lineage = {"git.commit": "mlflow.source.git.commit", "git.dirty": "git.dirty"}
    tags = tags | {tag: run.data.tags[key] for tag, key in lineage.items() if key in run.data.tags}
    source, text = f"{run.info.artifact_uri}/{ARTIFACT_FOLDER}", candidate.card
    if len(text) > MAX_DESCRIPTION_LENGTH:
        text = text[: MAX_DESCRIPTION_LENGTH - 1] + "…"
    version = client.create_model_version(name, source, candidate.run_id, tags=tags, description=text)
    return str(version.version), True


def _save(folder: Path, candidate: Candidate) -> None:
    """Write the model into a new folder."""
    import pandas as pd

    from detection.experiments.pyfunc import THRESHOLD, _load_pyfunc

    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")  # the model has its own requirements
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="detection-promote-") as scratch:
        warnings.simplefilter("ignore")  # MLflow 3.17 warns of its own types and of its own use of pandas 3
        import mlflow.pyfunc
        from mlflow.models import Model

        detector = Path(scratch, DETECTOR.name)
        detector.write_bytes(candidate.detector)
        versions = ((name, importlib.metadata.version(name)) for name in REQUIREMENTS)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=_load_pyfunc.__module__,
            data_path=str(detector),
            code_paths=[str(Path(detection.__file__).parent)],
            mlflow_model=Model(run_id=candidate.run_id),
            signature=_signature(THRESHOLD),
            input_example=(pd.DataFrame({"image": [candidate.example]}), {"threshold": THRESHOLD}),
            pip_requirements=[f"{name}=={version.partition('+')[0]}" for name, version in versions],  # not +cpu
            model_config={"device": "auto"},
        )
    (folder / MODEL_CARD.name).write_text(candidate.card, encoding="utf-8")


def _signature(threshold: float) -> "ModelSignature":
    """Input: bytes of image files, and a score threshold. Output: image sizes and detections."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    fields = {"box": Array(DataType.double), "label": DataType.long, "class": DataType.string, "score": DataType.double}
    detections = Object([Property(name, dtype) for name, dtype in fields.items()])
    outputs: list[Any] = [ColSpec(DataType.long, "width"), ColSpec(DataType.long, "height")]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([*outputs, ColSpec(Array(detections), "detections")]),
        params=ParamSchema([ParamSpec("threshold", DataType.double, threshold)]),
    )


def _example(experiment: Experiment) -> bytes:
    """Image file of the test split, or a gray image if the images are not on this machine."""
    from PIL import Image

    from detection.files import data_root

    folder = read_json(experiment.files, f"{PREPARED}/meta.json").get("path", "")
    for image in read_json(experiment.files, f"{PREPARED}/test_coco.json").get("images", [])[:1]:
        file: Path = data_root() / folder / image["file_name"]
        if file.is_file():
            return file.read_bytes()
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), "gray").save(buffer, format="PNG")
    return buffer.getvalue()


def download_detector(uri: str, folder: Path) -> Path:
    """Download the detector file of a registered model.

    Args:
        uri: `models:/<name>@<alias>`, `models:/<name>/<version>` or `runs:/<run id>/<path>`.
        folder: Existing folder for the files.

    Raises:
        TrackingError: MLflow does not know the model.
        DataError: The model holds no detector of this project.
    """
    mlflow = import_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        mlflow.set_tracking_uri(tracking_uri())
        path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{uri} cannot be loaded: {str(error).splitlines()[0]}") from None
    files = [path] if path.is_file() else sorted(path.rglob(DETECTOR.name))
    if not files:
        raise DataError(f"{uri} holds no {DETECTOR.name}; `detection promote` registers one")
    return files[0]


def extract_detector(source: str, folder: Path) -> Path:
    """Write the detector file of a registry URI, an experiment or an MLflow run into an existing folder.

    Args:
        source: `models:/...`, `runs:/...`, or a name as `find` takes it.
        folder: Folder for the file.

    Raises:
        DataError: No experiment or run has this name, or it has no detector.
        TrackingError: The MLflow store cannot be read.
    """
    if source.startswith(("models:/", "runs:/")):
        return download_detector(source, folder)
    content = find(source, Repository()).files.read(str(DETECTOR))
    if content is None:
        raise DataError(f"{source} has no {DETECTOR}; `dvc exp run` trains one")
    path = folder / DETECTOR.name
    path.write_bytes(content)
    return path
