"""Weights of a trained detector that training starts from, from where `check` resolved `start.from` to."""

import tempfile
from pathlib import Path
from typing import Any

import torchvision

from detection.errors import CheckpointError, ParamsError
from detection.experiments.registry import download_detector, extract_detector
from detection.files import dvc_root
from detection.weights import StartWeights, published_state_dict, read_start


def fetch_start(source: dict[str, Any]) -> StartWeights:
    """Read or download the weights.

    Args:
        source: Resolved `start.from`, see `detection.experiments.start_source.resolve`; `from` None gives no weights.

    Raises:
        CheckpointError: The file is damaged or not a weights file, or cannot be downloaded.
        DataError: The experiment's detector is not on this machine.
        ParamsError: The recipe names weights that torchvision does not have.
        TrackingError: The registry does not answer.
    """
    if source["from"] is None:
        return StartWeights(source, {})
    name = str(source["from"])
    if source["type"] == "published":
        return _published(source)
    if source["type"] == "file":
        return read_start(dvc_root() / name, source)
    with tempfile.TemporaryDirectory(prefix="detection-start-") as folder:
        if source["type"] == "model":
            path = download_detector(source["uri"], Path(folder))
        else:
            path = extract_detector(name, Path(folder))
        try:
            return read_start(path, source)
        except CheckpointError as error:  # the temporary path tells the user nothing
            raise CheckpointError(f"start.from: {str(error).replace(str(path), name)}") from None


def _published(source: dict[str, Any]) -> StartWeights:
    try:
        weights = torchvision.models.get_weight(source["weights"])
    except ValueError as error:
        raise ParamsError(f"params.yaml: coco_weights: torchvision has no {source['weights']} ({error})") from None
    return StartWeights(source, published_state_dict(weights), tuple(weights.meta["categories"]))
