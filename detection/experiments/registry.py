"""Register an experiment's detector, with the lineage that leads back to row, commit and data."""

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detection.errors import DataError, TrackingError
from detection.experiments.contents import DETECTOR, read_json
from detection.experiments.find import Experiment
from detection.experiments.runs import open_store
from detection.pipeline import locked_outs
from detection.tracking.client import find_run
from detection.tracking.store import Store

CARD = "reports/model_card.md"
METRICS, DATASET = "reports/evaluation/metrics.json", "reports/dataset/card.json"
RECIPE = "reports/train/recipe.json"
FOLDER = "registered"
"""Of the row's artifacts."""
SCORES = ("AP", "AP50", "AP75", "voc_ap50_11pt", "voc_ap50_area")
LONGEST = 5000
"""Characters of a description that MLflow's database takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is registered."""

    detector: bytes
    card: str
    picture: bytes
    run_id: str
    tags: dict[str, str]


def promote(experiment: Experiment, name: str | None, alias: str) -> str:
    """Register an experiment's detector and point an alias at it.

    A detector that is registered already gets no second version.

    Args:
        experiment: Trained, evaluated and tracked.
        name: Of the registered model; None: `detector-<dataset>`.
        alias: The name that `models:/<name>@<alias>` is loaded by.

    Raises:
        DataError: The experiment has no detector or no scores.
        TrackingError: Its row is not in the store, or the store refuses.
    """
    from mlflow.exceptions import MlflowException

    store, candidate = open_store(), gather(experiment)
    row = find_run(store, candidate.run_id) if store else None
    if store is None or row is None:
        raise TrackingError(
            f"MLflow does not know the row {candidate.run_id} of {experiment.name}; "
            "`detection sync` brings it there"
        )
    candidate = replace(candidate, run_id=row.info.run_id)  # which may stand for a lost one
    name = name or f"detector-{candidate.tags['dataset']}"
    try:
        version, is_new = _version(store, row, candidate, name)
        store.client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise TrackingError(f"MLflow refuses {name}@{alias}: {str(error).splitlines()[0]}") from None
    was = "is now" if is_new else "was registered already as"
    return (
        f"{experiment.name} {was} version {version} of {name}, and {alias} points at it\n"
        f'  mlflow.pyfunc.load_model("models:/{name}@{alias}")'
    )


def gather(experiment: Experiment) -> Candidate:
    """Read what is registered.

    Raises:
        DataError: Something is missing.
    """
    detector = experiment.files.read(DETECTOR)
    metrics, recipe = read_json(experiment.files, METRICS), read_json(experiment.files, RECIPE)
    if detector is None or not metrics:
        raise DataError(
            f"{experiment.name} has no detector that was evaluated; dvc exp run trains and scores one"
        )
    experiment.check_scored()
    run_id = experiment.run_id()
    if run_id is None:
        raise TrackingError(f"{experiment.name} has no row in MLflow; `detection sync` makes it")
    data = read_json(experiment.files, DATASET)
    tags = _tags(experiment, recipe, metrics, data)
    card = experiment.files.read(CARD)
    return Candidate(
        detector=detector,
        card=card.decode() if card else _card(tags, data),
        picture=_picture(experiment),
        run_id=run_id,
        tags=tags,
    )


def _version(store: Store, row: Any, candidate: Candidate, name: str) -> tuple[str, bool]:
    """The version of this very detector, made where there is none, and whether it was made."""
    client, tags = store.client, candidate.tags
    same = [one for one in client.search_model_versions(f"name = '{name}'") if _is_same(one, candidate)]
    if same:
        return str(same[0].version), False
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Finds objects as {tags['dataset']} knows them.")
    _store(store, candidate)
    source, tags = f"{row.info.artifact_uri}/{FOLDER}", tags | _row_tags(row)
    text = candidate.card if len(candidate.card) <= LONGEST else candidate.card[: LONGEST - 1] + "…"
    made = client.create_model_version(name, source, candidate.run_id, tags=tags, description=text)
    return str(made.version), True


def _is_same(version: Any, candidate: Candidate) -> bool:
    key = "digest.detector"
    return bool(version.run_id == candidate.run_id and version.tags.get(key) == candidate.tags.get(key))


def _store(store: Store, candidate: Candidate) -> None:
    """Put the model among the row's artifacts."""
    from detection.experiments import registry_package

    with tempfile.TemporaryDirectory(prefix="detection-promote-") as folder:
        detector, model = Path(folder) / Path(DETECTOR).name, Path(folder) / FOLDER
        detector.write_bytes(candidate.detector)
        registry_package.save(model, detector, candidate.picture, candidate.card, candidate.run_id)
        store.client.log_artifacts(candidate.run_id, str(model), FOLDER)


def _tags(
    experiment: Experiment, recipe: Mapping[str, Any], metrics: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, str]:
    md5 = locked_outs(experiment.files.read("dvc.lock"))
    tags = {
        "model": recipe.get("model"),
        "dataset": recipe.get("dataset"),
        "license": data.get("license"),
        "dvc.experiment": experiment.name,
        "dvc.rev": experiment.rev,
        "digest.detector": md5.get(DETECTOR),
        "digest.data": data.get("digest"),
        "digest.test": md5.get("data/prepared/test.npz"),
        **{f"test/{key}": f"{metrics[key]:.4f}" for key in SCORES if metrics.get(key) is not None},
    }
    return {key: str(value) for key, value in tags.items() if value}


def _row_tags(row: Any) -> dict[str, str]:
    told = {"git.commit": "mlflow.source.git.commit", "git.dirty": "git.dirty"}
    return {key: row.data.tags[own] for key, own in told.items() if own in row.data.tags}


def _card(tags: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """What an experiment without a model card says for itself."""
    classes = ", ".join(data.get("classes", []))
    lines = [f"# {tags.get('model')} on {tags.get('dataset')}", "", f"Finds: {classes}.", ""]
    return "\n".join([*lines, *(f"- {key}: {value}" for key, value in tags.items())]) + "\n"


def _picture(experiment: Experiment) -> bytes:
    """A test picture, or a grey one where the pictures are not on this machine."""
    from PIL import Image

    from detection.files import data_root

    folder = read_json(experiment.files, "data/prepared/meta.json").get("path", "")
    for image in read_json(experiment.files, "data/prepared/test_coco.json").get("images", [])[:1]:
        file: Path = data_root() / folder / image["file_name"]
        if file.is_file():
            return file.read_bytes()
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), "grey").save(buffer, format="PNG")
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
    from detection.tracking.store import import_mlflow, tracking_uri

    mlflow = import_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        mlflow.set_tracking_uri(tracking_uri())
        path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{uri} cannot be loaded: {str(error).splitlines()[0]}") from None
    files = [path] if path.is_file() else sorted(path.rglob(Path(DETECTOR).name))
    if not files:
        raise DataError(f"{uri} holds no {Path(DETECTOR).name}; `detection promote` registers one")
    return files[0]
