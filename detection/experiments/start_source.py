"""Source of a started training: resolve `start.from` to a file, published weights, an experiment or a model version.

`check` resolves it and writes the result, a digest included, to `data/weights.json`, which `pretrain` depends on.
No heavy package is imported for a file or published weights.
"""

import re
from pathlib import Path
from typing import Any

from detection.errors import DataError, ParamsError, TrackingError, reason
from detection.experiments.find import WORKSPACE, find, open_store
from detection.experiments.repository import Repository
from detection.files import BACKBONE, DETECTOR, START, WEIGHTS_JSON, dvc_root, read_json, sha256
from detection.params import Params
from detection.pipeline import LOCK, locked_outs
from detection.text import did_you_mean

WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".pkl")
PUBLISHED = "published"
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")

LOGGED_MODEL_URI = re.compile(r"models:/(m-[0-9a-f]{32})")


def resolve(params: Params) -> dict[str, Any]:
    """Resolve `start.from`.

    Returns:
        `from` (the name), `type` (`published`, `file`, `experiment`, `model`), what identifies the
        weights (`weights`, `sha256`, `md5`, `version`), where they come from (`rev`, `run_id`), and `classes`.

    Raises:
        ParamsError: The recipe has no published weights, or the source is an output of the pipeline.
        DataError: No file, experiment, run or model has the name, or it has no detector.
        TrackingError: The registry cannot be read.
    """
    name = params.start.from_
    assert name is not None
    classes = {"classes": list(params.start.classes)} if params.start.classes else {}
    return {"from": name, **_resolve(name, params), **classes}


def resolved() -> dict[str, Any]:
    """Source that `check` resolved; `from` None: nothing to start from.

    Raises:
        DataError: `check` has not run.
    """
    if not WEIGHTS_JSON.is_file():
        raise DataError(f"{WEIGHTS_JSON} does not exist; run `dvc repro check` first")
    source: dict[str, Any] = read_json(WEIGHTS_JSON)["start"]
    return source


def _resolve(name: str, params: Params) -> dict[str, Any]:
    if name == PUBLISHED:
        if params.recipe.coco_weights is None:
            raise ParamsError(
                f"params.yaml: start.from: no detector weights are published for {params.model}; name a file or an "
                "experiment, or set pretrain.method: published for the backbone alone"
            )
        return {"type": PUBLISHED, "weights": params.recipe.coco_weights}
    if name.startswith(("models:/", "runs:/")):
        return _resolve_uri(name)
    path = dvc_root() / name
    if path.is_file():
        return _resolve_file(name, path)
    if path.suffix.lower() in WEIGHT_SUFFIXES:
        raise DataError(f"start.from: {path} does not exist; correct the path, or put the file there")
    return _resolve_experiment(name, path)


def _resolve_file(name: str, path: Path) -> dict[str, Any]:
    if any(path.resolve() == (dvc_root() / out).resolve() for out in (DETECTOR, BACKBONE, START)):
        raise ParamsError(
            f"params.yaml: start.from: {name} is an output that the next training replaces; start from a copy: "
            f"cp {name} first.pt"
        )
    return {"type": "file", "sha256": sha256(path)}


def _resolve_experiment(name: str, path: Path) -> dict[str, Any]:
    if name == WORKSPACE:
        raise ParamsError(f"params.yaml: start.from: {name} changes while it runs; name an experiment or a file")
    try:
        experiment = find(name, Repository())
    except DataError as error:
        if path.is_dir():
            raise DataError(f"start.from: {path} is a folder; name the weights file in it") from None
        if did_you_mean(name, [PUBLISHED]).startswith("did"):
            raise DataError(f"start.from: {error}; or did you mean {PUBLISHED!r}?") from None
        raise DataError(f"start.from: {error}") from None
    md5 = locked_outs(experiment.files.read(LOCK)).get(str(DETECTOR))
    if md5 is None:
        raise DataError(f"start.from: {name} has no {DETECTOR}; it was not trained to its end")
    source = {"type": "experiment", "md5": md5, "rev": experiment.rev, "run_id": experiment.run_id()}
    return {key: value for key, value in source.items() if value}


def _resolve_uri(uri: str) -> dict[str, Any]:
    """Model version of a registry URI: an alias may move later."""
    match = MODEL_URI.fullmatch(uri)
    if uri.startswith("runs:/"):
        return {"type": "model", "uri": uri, "run_id": uri.removeprefix("runs:/").split("/")[0]}
    model_id = LOGGED_MODEL_URI.fullmatch(uri)
    if match is None and model_id is None:
        raise ParamsError(
            f"params.yaml: start.from: {uri} is not models:/<name>@<alias>, models:/<name>/<version> or models:/<id>"
        )
    store = open_store()
    if store is None:
        raise TrackingError(f"start.from: {uri}: MLflow has no model yet; `detection promote` registers one")
    try:
        if match is None:
            assert model_id
            model = store.client.get_logged_model(model_id[1])
            source = {"md5": model.tags.get("digest.detector"), "run_id": model.source_run_id}
            return {"type": "model", "uri": uri} | {key: value for key, value in source.items() if value}
        if match["alias"]:
            version = store.client.get_model_version_by_alias(match["name"], match["alias"])
        else:
            version = store.client.get_model_version(match["name"], match["version"])
    except Exception as error:  # MLflow's stores raise any type of error
        raise TrackingError(f"start.from: {uri} cannot be resolved: {reason(error)}") from None
    source = {
        "type": "model",
        "uri": f"models:/{match['name']}/{version.version}",
        "version": str(version.version),
        "md5": version.tags.get("digest.detector"),
        "run_id": version.run_id,
    }
    return {key: value for key, value in source.items() if value}
