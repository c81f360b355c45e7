"""MLflow's model registry: register an experiment's detector, and download it again.

A version is the LoggedModel of the detector. It has tags that lead back to run, commit and data.
"""

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detection.errors import DataError, TrackingError
from detection.experiments.find import Experiment, find, open_store
from detection.experiments.repository import Repository, read_json
from detection.files import DETECTOR, MODEL_CARD, PREPARED, REPORTS_DATASET, REPORTS_EVALUATION, REPORTS_TRAIN, md5
from detection.pipeline import locked_outs
from detection.tracking.artifacts import Artifacts, files_below
from detection.tracking.client import TRAINING_ID, find_run
from detection.tracking.logged_model import DIGEST, fill, find_or_create, link, model_of, tolerate_old_server
from detection.tracking.model_folder import write_model_folder
from detection.tracking.store import Store, display_uri, import_mlflow, tracking_uri

ARTIFACT_FOLDER = "registered"
"""Folder of the run's artifacts that holds the model on a server without LoggedModels."""
MAX_DESCRIPTION_LENGTH = 5000
"""Characters of a version's description; the limit of MLflow's database."""
SCORES = ("AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Content of a new model version."""

    detector: bytes
    """Detector file."""
    card: str
    """Model card, Markdown."""
    example: bytes | None
    """Image file, the input example; None: the images are not on this machine."""
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
    mlflow = import_mlflow()
    from mlflow.exceptions import MlflowException

    store, candidate = open_store(), gather(experiment)
    run = find_run(store, candidate.run_id) if store else None
    if store is None or run is None:
        raise TrackingError(
            f"MLflow does not have the run {candidate.run_id} of {experiment.name}; send it: detection sync"
        )
    mlflow.set_tracking_uri(store.uri)  # MLflow looks up the LoggedModel there, whichever client asks
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
    locked = locked_outs(files.read("dvc.lock"))
    values = {
        "model": recipe.get("model"),
        "dataset": recipe.get("dataset"),
        "license": data.get("license"),
        "dvc.experiment": experiment.name,
        "dvc.rev": experiment.rev,
        DIGEST: hashlib.md5(detector, usedforsecurity=False).hexdigest(),
        "digest.data": data.get("digest"),
        "digest.test": locked.get(f"{PREPARED}/test.npz"),
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
    client, tags, digest = store.client, candidate.tags, DIGEST
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == candidate.run_id and version.tags.get(digest) == tags.get(digest):
            return str(version.version), False
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Detects the objects of {tags['dataset']}.")
    source, model_id = _stored_model(store, run, candidate)
    lineage = {"git.commit": "mlflow.source.git.commit", "git.dirty": "git.dirty"}
    tags = tags | {tag: run.data.tags[key] for tag, key in lineage.items() if key in run.data.tags}
    text = candidate.card
    if len(text) > MAX_DESCRIPTION_LENGTH:
        text = text[: MAX_DESCRIPTION_LENGTH - 1] + "…"
    version = client.create_model_version(
        name, source, candidate.run_id, tags=tags, description=text, model_id=model_id
    )
    return str(version.version), True


def _stored_model(store: Store, run: Any, candidate: Candidate) -> tuple[str, str | None]:
    """URI and id of the detector's LoggedModel, complete; on a server of MLflow 2 a folder of the run.

    Raises:
        TrackingError: The server refuses the files.
    """
    with tempfile.TemporaryDirectory(prefix="detection-promote-") as folder:
        detector = Path(folder, DETECTOR.name)
        detector.write_bytes(candidate.detector)
        model = None
        with tolerate_old_server("the version belongs to the run instead"):
            model = model_of(store, run.info.run_id)
            if model is None or model.tags[DIGEST] != md5(detector):
                model = find_or_create(store, run, detector, run.data.tags.get(TRAINING_ID))
                link(store, run, model)
        if model is not None:
            fill(store, model, detector, candidate.example)
            _check_accepted(store.client.get_logged_model(model.model_id).status == "READY")
            artifacts = Artifacts(store.client, model.artifact_location)
        else:
            copy = Path(folder, ARTIFACT_FOLDER)
            write_model_folder(copy, detector, run_id=candidate.run_id, model_id=None, example=candidate.example)
            artifacts = Artifacts(store.client, run.info.artifact_uri)
            artifacts.send_all(files_below(copy, ARTIFACT_FOLDER))
        card = Path(folder, MODEL_CARD.name)
        card.write_text(candidate.card, encoding="utf-8")
        artifacts.send(card, None if model else ARTIFACT_FOLDER)
        _check_accepted(not artifacts.refused)
    if model is not None:
        return f"models:/{model.model_id}", model.model_id
    return f"{run.info.artifact_uri}/{ARTIFACT_FOLDER}", None


def _check_accepted(accepted: bool) -> None:
    if not accepted:
        raise TrackingError(
            f"MLflow at {display_uri()} refuses files of the detector, see above; nothing is registered"
        )


def _example(experiment: Experiment) -> bytes | None:
    """Image file of the test split; None if the images are not on this machine."""
    from detection.files import data_root

    folder = read_json(experiment.files, f"{PREPARED}/meta.json").get("path", "")
    for image in read_json(experiment.files, f"{PREPARED}/test_coco.json").get("images", [])[:1]:
        file: Path = data_root() / folder / image["file_name"]
        if file.is_file():
            return file.read_bytes()
    return None


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
