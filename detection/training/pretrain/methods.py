"""Where a backbone's weights come from: crops of the training objects, a folder of pictures, torchvision."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from detection.data.loading.loader import loader_workers
from detection.data.prepared import Prepared
from detection.device import pick_precision
from detection.errors import CheckpointError, DataError
from detection.files import data_root
from detection.models.backbones import is_feature
from detection.params import Params
from detection.params.recipe_base import Optimizer, Schedule
from detection.params.stages import Crops, ImageFolder
from detection.training.checkpoint import Checkpoints
from detection.training.pretrain.classification_data import (
    CropCheck,
    CropExamples,
    FolderCheck,
    FolderExamples,
)
from detection.training.pretrain.classifier import ClassifierJob, fit
from detection.training.pretrain.crops import CropSet, cut_crops
from detection.training.pretrain.imagefolder import Folder, FolderPictures, list_folder

log = logging.getLogger(__name__)
Result = tuple[dict[str, Tensor], list[dict[str, float]]]
"""The features' state dict, and a row of the curve an epoch."""
Make = Callable[[Checkpoints, Path], dict[str, Any]]
"""From the checkpoints and the curve's file to `state_dict`, `metrics` and `curve`."""


def choose(params: Params, device: torch.device) -> tuple[dict[str, Any], Make]:
    """The method of `params.pretrain`: what its result hangs on beside backbone and seed, and what makes it.

    Raises:
        DataError: A folder of pictures is asked for and not there.
    """
    pretrain = params.pretrain
    trained = {"precision": params.train.precision, "determinism": params.train.determinism}
    if pretrain.method == "crops":
        return {"crops": asdict(pretrain.crops), **trained}, partial(_from_crops, params, device)
    if pretrain.method == "imagefolder":
        root = data_root() / pretrain.imagefolder.path
        train = list_folder(root / "train")
        val = list_folder(root / "val", train.classes)
        reads = {"imagefolder": asdict(pretrain.imagefolder), "train": train.digest, "val": val.digest}
        return reads | trained, partial(_from_folder, params, device, train, val)
    if pretrain.method == "published":
        backbone, architecture = params.recipe.backbone, params.recipe.architecture
        name = str(published(backbone, architecture))
        return {"weights": name}, partial(_from_torchvision, backbone, architecture)
    return {}, lambda *_: {"state_dict": None, "metrics": {"method": "none"}, "curve": []}


def _from_crops(
    params: Params, device: torch.device, checkpoints: Checkpoints, curves: Path
) -> dict[str, Any]:
    prepared = Prepared.load("data/prepared")
    prepared.check_unchanged("train")
    backbone, settings = params.recipe.backbone, params.pretrain.crops
    classes, started = len(prepared.classes), time.monotonic()
    train, val = (
        cut_crops(prepared.index(split), prepared.root, settings, classes, params.seed)
        for split in ("train", "val")
    )
    log.info("pretraining %s on %d crops, %d to check", backbone, len(train), len(val))
    precision = pick_precision(params.train.precision, device)
    state, curve = train_on_crops(
        backbone, train, val, classes, settings, device, precision, params.seed, checkpoints, curves
    )
    metrics = {"method": "crops", "crops": len(train), "seconds": round(time.monotonic() - started, 1)}
    return {"state_dict": state, "metrics": metrics | curve[-1], "curve": curve}


def _from_folder(
    params: Params, device: torch.device, train: Folder, val: Folder, checkpoints: Checkpoints, curves: Path
) -> dict[str, Any]:
    backbone = params.recipe.backbone
    counts = len(train), len(val), len(train.classes)
    log.info("pretraining %s on %d pictures, %d to check, %d classes", backbone, *counts)
    precision = pick_precision(params.train.precision, device)
    workers = loader_workers(params.train.workers, device)
    settings = params.pretrain.imagefolder
    state, curve = train_on_folder(
        backbone, train, val, settings, workers, device, precision, params.seed, checkpoints, curves
    )
    metrics = {"method": "imagefolder", "pictures": len(train)}
    return {"state_dict": state, "metrics": metrics | curve[-1], "curve": curve}


def _from_torchvision(
    backbone: str, architecture: str, checkpoints: Checkpoints, curves: Path
) -> dict[str, Any]:
    state, name = published_weights(backbone, architecture)
    return {"state_dict": state, "metrics": {"method": "published", "weights": name}, "curve": []}


def train_on_crops(
    backbone: str,
    train: CropSet,
    val: CropSet,
    classes: int,
    settings: Crops,
    device: torch.device,
    precision: torch.dtype,
    seed: int,
    checkpoints: Checkpoints,
    curves: Path,
) -> Result:
    """Train a backbone to tell objects and background apart.

    Args:
        backbone: Its name.
        train: Crops of the training split.
        val: Crops of the validation split; may be empty.
        classes: Number of classes, background not counted.
        settings: Size, length and learning rate.
        device: Where to train.
        precision: bfloat16 for autocast, or float32.
        seed: Of the first weights, the order and the augmentation.
        checkpoints: To go on from; held by the caller.
        curves: The CSV that grows by a row an epoch.

    Raises:
        DataError: There is no crop.
    """
    if len(train) == 0:
        raise DataError("the training split holds no object to cut crops from; set pretrain.method: none")
    examples = CropExamples(train, settings, seed)
    course = ClassifierJob(
        backbone=backbone,
        classes=classes + 1,
        train=examples,
        val=CropCheck(val, settings.image_size),
        optimizer=Optimizer(lr=settings.lr, weight_decay=settings.weight_decay, norm_weight_decay=0.0),
        schedule=Schedule(name="cosine", warmup_iterations=len(examples), warmup_factor=0.05),
        steps=settings.epochs * len(examples),
        log_every=len(examples),
        device=device,
        precision=precision,
        seed=seed,
        curves=curves,
    )
    return fit(course, checkpoints)


def train_on_folder(
    backbone: str,
    train: Folder,
    val: Folder,
    settings: ImageFolder,
    workers: int,
    device: torch.device,
    precision: torch.dtype,
    seed: int,
    checkpoints: Checkpoints,
    curves: Path,
) -> Result:
    """Train a backbone to classify the pictures of a folder, ImageNet above all.

    Args:
        backbone: Its name.
        train: The training split.
        val: What top-1 accuracy is measured on after each epoch; never chosen by.
        settings: Size, augmentation, length and learning rate.
        workers: Loader processes of this process; 0 loads here.
        device: Where to train.
        precision: bfloat16 for autocast, or float32.
        seed: Of the first weights, the order and the augmentation.
        checkpoints: To go on from; held by the caller.
        curves: The CSV that grows by a row an epoch.
    """
    examples = FolderExamples(FolderPictures(train, settings, True, seed), settings.batch_size, workers)
    course = ClassifierJob(
        backbone=backbone,
        classes=len(train.classes),
        train=examples,
        val=FolderCheck(FolderPictures(val, settings, False), workers),
        optimizer=Optimizer(lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay),
        schedule=Schedule(
            name="multistep", milestones=settings.milestones, gamma=settings.gamma, warmup_iterations=0
        ),
        steps=settings.iterations,
        log_every=settings.log_every,
        device=device,
        precision=precision,
        seed=seed,
        curves=curves,
    )
    return fit(course, checkpoints)


def published(backbone: str, architecture: str) -> WeightsEnum:
    """The ImageNet weights that a published detector began with.

    Those are torchvision's first ones, whatever came later, with which its references were trained. SSD's
    VGG16 sees pixels of 0 to 255 less their mean: other weights, made for those, and without fc6 and fc7.
    """
    name = "IMAGENET1K_FEATURES" if architecture == "ssd" else "IMAGENET1K_V1"
    return torchvision.models.get_model_weights(backbone)[name]


def published_weights(backbone: str, architecture: str) -> tuple[dict[str, Tensor], str]:
    """Torchvision's ImageNet weights of a backbone, from its cache or downloaded; the hash is checked.

    Args:
        backbone: Its name.
        architecture: The family of the detector above it, see `published`.

    Returns:
        The features' state dict (of VGG16 with fc6 and fc7 where those have values), and the weights' name.

    Raises:
        CheckpointError: They cannot be downloaded, or the file is damaged.
    """
    weights = published(backbone, architecture)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise CheckpointError(
            f"the published weights of {backbone} cannot be had ({error}). Put {weights.url} at {cache}, "
            "or set pretrain.method to crops or none"
        ) from None
    kept = {k: v for k, v in state.items() if is_feature(k, backbone) and not v.isnan().any()}
    return kept, str(weights)
