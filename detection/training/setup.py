"""From params and prepared data to a `TrainingJob`, ready for the loop."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from detection import distributed
from detection.data.loading.loader import DetectionDataset, Loader, loader_workers
from detection.data.prepared import Prepared
from detection.device import pick_precision
from detection.errors import ParamsError
from detection.models.backbones import read_weights
from detection.models.build import build_detector, without_weights
from detection.params import Params, Recipe
from detection.training import launch
from detection.training.checkpoint import content_key
from detection.training.loop import TrainingJob, split
from detection.training.validation import Validator

log = logging.getLogger(__name__)
ONE_CELL = 512  # pixels, up to which SSDlite's last map is a single cell


def build_job(
    params: Params, prepared: Prepared, backbone: Path, device: torch.device, reports: Path
) -> TrainingJob:
    """Build the detector on its pretrained backbone, the loader, the validator and the checkpoints.

    Args:
        params: The experiment.
        prepared: Its data.
        backbone: What `pretrain` left.
        device: Where to train.
        reports: Where the curves go.

    Raises:
        CheckpointError: The backbone's weights do not fit.
        ParamsError: The batch cannot be shared by so many devices, or split into such small parts.
    """
    settings = params.train
    precision = pick_precision(settings.precision, device)
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
    torch.manual_seed(params.seed)
    weights = read_weights(backbone, params.recipe.backbone)
    recipe = params.recipe if weights else without_weights(params.recipe)
    detector = build_detector(recipe, len(prepared.classes), weights).to(device).train()
    if settings.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    index, cache = prepared.index("train"), settings.cache_mb // distributed.world_size()
    pictures = DetectionDataset(index, prepared.root, recipe, train=True, seed=params.seed, cache_mb=cache)
    loader = Loader(pictures, recipe.batch_size, loader_workers(settings.workers, device), shuffle=True)
    if device.type == "cpu" or distributed.world_size() == 1:  # several GPUs join their statistics
        check_parts(
            recipe, min(len(index), recipe.batch_size) // distributed.world_size(), settings.accumulate
        )
    validator = Validator(prepared.index("val"), prepared.root, prepared.classes, recipe, settings.precision)
    key = content_key("train", {"recipe": asdict(recipe), "train": asdict(settings), "seed": params.seed})
    where = device.type if distributed.world_size() == 1 else f"{distributed.world_size()} x {device.type}"
    log.info("%s on %s, %s, %s", params.model, params.dataset, where, str(precision).removeprefix("torch."))
    for one in params.overrides:
        log.info("  %s = %s  (%s)", one.key, one.value, one.source)
    return TrainingJob(
        detector=detector,
        recipe=recipe,
        settings=settings,
        loader=loader,
        validator=validator,
        device=device,
        precision=precision,
        reports=reports,
        checkpoints=launch.checkpoints("train", key),
    )


def check_parts(recipe: Recipe, pictures: int, accumulate: int) -> None:
    """Refuse an SSDlite that would see a single picture at a time.

    BatchNorm under its last map, one cell, would have one number of each channel, which has no variance.

    Args:
        recipe: Of any architecture.
        pictures: Of a batch, in this process.
        accumulate: Parts that they are split into.

    Raises:
        ParamsError: A part is one picture.
    """
    if recipe.architecture != "ssdlite" or recipe.image_size > ONE_CELL:
        return
    if any(part.stop - part.start == 1 for part in split(pictures, accumulate)):
        raise ParamsError(
            "params.yaml: train.accumulate: SSDlite cannot train on one picture at a time, as BatchNorm "
            "needs two numbers of a channel; raise batch_size, or lower train.accumulate or train.devices"
        )
