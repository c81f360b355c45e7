"""Sources of a backbone's weights: crops of the training objects, an ImageFolder, torchvision, a file, or none."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from detection.data.loading.loader import loader_workers
from detection.data.loading.prepared import Prepared
from detection.device import pick_precision
from detection.errors import CheckpointError, DataError
from detection.files import WEIGHTS_JSON, data_root, dvc_root, read_json, sha256
from detection.models.backbones import is_feature
from detection.params import Params
from detection.params.recipe_base import Optimizer, Schedule
from detection.params.stages import Crops, ImageFolder
from detection.training.common.checkpoint import Checkpoints
from detection.training.common.threads import settle_threads
from detection.training.pretrain.backbone_file import read_backbone
from detection.training.pretrain.classifier import ClassifierJob, fit, step_on_a_copy
from detection.training.pretrain.crops import CropData, CropSet, cut_crops
from detection.training.pretrain.imagefolder import FolderData, list_folder
from detection.weights import published_state_dict

log = logging.getLogger(__name__)
MakeWeights = Callable[[Checkpoints, Path], dict[str, Any]]
"""From checkpoints and the curve's CSV file to `state_dict`, `metrics` and `curve`."""


def select_method(params: Params, device: torch.device) -> tuple[dict[str, Any], MakeWeights]:
    """Select the method of `params.pretrain`.

    Returns:
        Inputs of the result other than backbone and seed, for the checkpoint key, and the function to run.

    Raises:
        DataError: The ImageFolder does not exist, or the weights file changed since `check`.
    """
    pretrain = params.pretrain
    training = {"precision": params.train.precision, "determinism": params.train.determinism}
    if pretrain.method == "crops":
        return {"crops": asdict(pretrain.crops), **training}, partial(_from_crops, params, device)
    if pretrain.method == "imagefolder":
        root = data_root() / pretrain.imagefolder.path
        train = list_folder(root / "train")
        val = list_folder(root / "val", train.classes)
        inputs = {"imagefolder": asdict(pretrain.imagefolder), "train": train.digest, "val": val.digest}
        workers = loader_workers(params.train.workers, device)
        data = FolderData(train, val, pretrain.imagefolder, workers, params.seed)
        data.start()
        return inputs | training, partial(_from_folder, params, device, data)
    if pretrain.method == "file":
        path = dvc_root() / str(pretrain.file)
        digest = sha256(path)
        checked = read_json(WEIGHTS_JSON).get("backbone", {}).get("sha256", digest)
        if checked != digest:
            raise DataError(f"pretrain.file: {path} changed while the pipeline ran; repeat the command")
        return {"file": digest}, partial(_from_file, path, params.recipe.backbone, digest)
    if pretrain.method == "published":
        backbone, architecture = params.recipe.backbone, params.recipe.architecture
        name = str(published(backbone, architecture))
        return {"weights": name}, partial(_from_torchvision, backbone, architecture)
    return {}, lambda *_: {"state_dict": None, "metrics": {"method": "none"}, "curve": []}


def describe_start(params: Params) -> str:
    """Origin of the backbone's weights and, if it differs, that of the published recipe."""
    starts = {
        "crops": "crops of the training objects",
        "imagefolder": f"a classification training on {params.pretrain.imagefolder.path}",
        "published": "torchvision's ImageNet weights",
        "file": f"the file {params.pretrain.file}",
        "none": "random weights",
    }
    method, published_start = params.pretrain.method, params.recipe.pretrained
    if method == published_start:
        return starts[method]
    return f"{starts[method]}; as published: {starts[published_start]} (pretrain.method={published_start})"


def _from_crops(params: Params, device: torch.device, checkpoints: Checkpoints, curves: Path) -> dict[str, Any]:
    prepared = Prepared.load()
    prepared.check_unchanged("train")
    settings, classes, started = params.pretrain.crops, len(prepared.classes), time.monotonic()
    train, val = (
        cut_crops(prepared.index(split), prepared.root, settings, classes, params.seed) for split in ("train", "val")
    )
    log.info("pretraining %s on %d train / %d val crops", params.recipe.backbone, len(train), len(val))
    job = crops_job(train, val, classes, settings, **_common(params, device, curves))
    settle_threads(params.train, device, job.steps, checkpoints, partial(step_on_a_copy, job))
    state, curve = fit(job, checkpoints)
    metrics = {"method": "crops", "crops": len(train), "seconds": round(time.monotonic() - started, 1)}
    return {"state_dict": state, "metrics": metrics | curve[-1], "curve": curve}


def _from_folder(
    params: Params, device: torch.device, data: FolderData, checkpoints: Checkpoints, curves: Path
) -> dict[str, Any]:
    backbone, counts = params.recipe.backbone, (len(data.train), len(data.val), len(data.train.classes))
    log.info("pretraining %s on %d train / %d val images of %d classes", backbone, *counts)
    job = folder_job(data, params.pretrain.imagefolder, **_common(params, device, curves))
    settle_threads(params.train, device, job.steps, checkpoints, partial(step_on_a_copy, job))
    state, curve = fit(job, checkpoints)
    metrics = {"method": "imagefolder", "images": len(data.train)}
    return {"state_dict": state, "metrics": metrics | curve[-1], "curve": curve}


def _common(params: Params, device: torch.device, curves: Path) -> dict[str, Any]:
    """Fields of a `ClassifierJob` that do not depend on the method."""
    precision = pick_precision(params.train.precision, device)
    backbone, seed = params.recipe.backbone, params.seed
    return {"backbone": backbone, "device": device, "precision": precision, "seed": seed, "curves": curves}


def _from_torchvision(backbone: str, architecture: str, checkpoints: Checkpoints, curves: Path) -> dict[str, Any]:
    state, name = published_weights(backbone, architecture)
    return {"state_dict": state, "metrics": {"method": "published", "weights": name}, "curve": []}


def _from_file(path: Path, backbone: str, digest: str, checkpoints: Checkpoints, curves: Path) -> dict[str, Any]:
    metrics = {"method": "file", "weights": path.name, "sha256": digest}
    return {"state_dict": read_backbone(path, backbone), "metrics": metrics, "curve": []}


def crops_job(train: CropSet, val: CropSet, classes: int, settings: Crops, **common: Any) -> ClassifierJob:
    """Set up the classification of objects and background.

    Args:
        train: Crops of the training split.
        val: Crops of the val split; may be empty.
        classes: Number of classes, background not counted.
        settings: Size, length and learning rate.
        **common: `backbone`, `device`, `precision`, `seed` and `curves` of the job.

    Raises:
        DataError: The training split gives no crops.
    """
    if len(train) == 0:
        raise DataError("the training split has no object to cut crops from; set pretrain.method: none")
    data = CropData(train, val, settings, common["seed"])
    return ClassifierJob(
        classes=classes + 1,
        data=data,
        optimizer=Optimizer(lr=settings.lr, weight_decay=settings.weight_decay, norm_weight_decay=0.0),
        schedule=Schedule(name="cosine", warmup_iterations=len(data), warmup_factor=0.05),
        steps=settings.epochs * len(data),
        log_every=len(data),
        **common,
    )


def folder_job(data: FolderData, settings: ImageFolder, **common: Any) -> ClassifierJob:
    """Set up the classification of an ImageFolder, such as ImageNet.

    Args:
        data: Batches of the training split, and of val for the top-1 accuracy after each epoch; it selects nothing.
        settings: Size, augmentation, length and learning rate.
        **common: `backbone`, `device`, `precision`, `seed` and `curves` of the job.
    """
    return ClassifierJob(
        classes=len(data.train.classes),
        data=data,
        optimizer=Optimizer(lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay),
        schedule=Schedule(name="multistep", milestones=settings.milestones, gamma=settings.gamma, warmup_iterations=0),
        steps=settings.iterations,
        log_every=settings.log_every,
        **common,
    )


def published(backbone: str, architecture: str) -> WeightsEnum:
    """Return the ImageNet weights that a published detector was trained from.

    These are torchvision's first ones, which its detection references used. SSD's VGG16 has weights of its
    own: for pixels in 0..255 minus their mean, and without fc6 and fc7.
    """
    name = "IMAGENET1K_FEATURES" if architecture == "ssd" else "IMAGENET1K_V1"
    return torchvision.models.get_model_weights(backbone)[name]


def published_weights(backbone: str, architecture: str) -> tuple[dict[str, Tensor], str]:
    """Read torchvision's ImageNet weights of a backbone from its cache, or download them; check the hash.

    Args:
        backbone: Name of the backbone.
        architecture: Architecture of the detector, see `published`.

    Returns:
        State dict of the features (VGG16: with fc6 and fc7 if they have values), and the weights' name.

    Raises:
        CheckpointError: The weights cannot be downloaded, or the file is not what was published.
    """
    weights = published(backbone, architecture)
    try:
        state = published_state_dict(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or set pretrain.method to crops, file or none") from None
    features = {k: v for k, v in state.items() if is_feature(k, backbone) and not v.isnan().any()}
    return features, str(weights)
