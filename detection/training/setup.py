"""Build a `TrainingJob` from params and prepared data."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from detection import distributed
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader, loader_workers
from detection.data.loading.prepared import Prepared
from detection.data.loading.tiles import cut
from detection.data.sources.dataset import check_learnable, without_empty
from detection.device import pick_memory_format, pick_precision
from detection.errors import ParamsError
from detection.files import BACKBONE, START
from detection.models.backbones import read_weights
from detection.models.build import build_detector, without_weights
from detection.models.transfer import transfer, with_structure
from detection.params import Params, Recipe, Train
from detection.params.recipe import FasterRCNNRecipe
from detection.params.stages import Tiles
from detection.training.common.checkpoint import Checkpoints, content_key
from detection.training.compilation import compile_detector, is_compiled
from detection.training.loop import TrainingJob, split
from detection.training.validation import Validator, train_sample
from detection.weights import load_start

log = logging.getLogger(__name__)
MAX_VALIDATE_BATCH_SIZE = 16
"""Largest batch of `train.validate_batch_size: auto`, and its batch on a CPU."""
SINGLE_CELL_SIZE = 512
"""Largest image size in pixels at which SSDlite's last feature map is a single cell."""


def like_start(params: Params) -> Params:
    """Params with the structure of the detector that training starts from, if there is one."""
    start = load_start(START)
    return with_structure(params, start.recipe) if start else params


def build_job(params: Params, prepared: Prepared, device: torch.device, reports: Path) -> TrainingJob:
    """Build the detector on the weights that `pretrain` wrote, the loader, the validator and the checkpoints.

    Args:
        params: The experiment.
        prepared: Prepared dataset.
        device: Device of this rank.
        reports: Folder of the curves.

    Raises:
        DataError: No training object can be learnt.
        CheckpointError: The backbone's or the start weights do not fit.
        ParamsError: The batch cannot be split equally over the devices, or the parts are too small.
    """
    settings = params.train
    check_determinism(params.recipe, settings.determinism, device)
    precision = pick_precision(settings.precision, device)
    torch.manual_seed(params.seed)
    start, weights = load_start(START), read_weights(BACKBONE, params.recipe.backbone)
    recipe = params.recipe if weights or start else without_weights(params.recipe)
    ranks, workers = distributed.world_size(), loader_workers(settings.workers, device)
    images, tiles, cache_mb = prepared.index("train"), prepared.tiles, settings.cache_mb // ranks
    index = _cut(images, tiles, getattr(params.data, "skip_empty", False))
    check_learnable(params.dataset, index, recipe.train_difficult)
    dataset = DetectionDataset(index, prepared.root, recipe, train=True, seed=params.seed, cache_mb=cache_mb)
    loader = Loader(dataset, recipe.batch_size, workers, shuffle=True)
    val, batch_size = _scorable(prepared.index("val")), validate_batch_size(settings, recipe, device)
    validator = Validator(val, prepared.root, prepared.classes, recipe, settings.precision, batch_size, workers)
    validator = replace(validator, tiles=tiles) if tiles else validator
    sample = None if len(val) else train_sample(validator, images)
    loader.start()
    (sample or validator).start()
    detector = build_detector(recipe, len(prepared.classes), weights)
    transferred = transfer(detector, start, prepared.classes, asdict(recipe)) if start else None
    memory_format = pick_memory_format(settings.channels_last, device, detector)
    detector = detector.to(device).to(memory_format=memory_format).train()
    if is_compiled(settings.compile, settings.determinism, device):
        compile_detector(detector)
    if device.type == "cpu" or ranks == 1:  # SyncBatchNorm joins the statistics of several GPUs
        check_batch_parts(recipe, min(len(index), recipe.batch_size) // ranks, settings.accumulate)
    if sample:
        log.info("no objects in val: the last weights are kept; a holdout_fraction of the dataset splits it off train")
    key = content_key("train", {"recipe": asdict(recipe), "train": asdict(settings), "seed": params.seed})
    devices = device.type if ranks == 1 else f"{ranks} x {device.type}"
    log.info("%s on %s, %s, %s", params.model, params.dataset, devices, str(precision).removeprefix("torch."))
    for override in params.overrides:
        log.info("  %s = %s  (%s)", override.key, override.value, override.source)
    for line in transferred.lines() if transferred else ():
        log.info("%s", line)
    return TrainingJob(
        detector=detector,
        transfer=transferred,
        recipe=recipe,
        settings=settings,
        loader=loader,
        validator=validator,
        train_sample=sample,
        model=params.model,
        device=device,
        precision=precision,
        memory_format=memory_format,
        reports=reports,
        checkpoints=Checkpoints("train", key),
    )


def _cut(index: Index, tiles: Tiles | None, skip_empty: bool) -> Index:
    """Index of the training windows; that of the images without tiles."""
    if tiles is None:
        return index
    windows = cut(index, tiles)
    kept = without_empty(windows) if skip_empty else windows
    log.info("tiles of %d px: %d images are %d windows", tiles.size, len(index), len(kept))
    return kept


def _scorable(index: Index) -> Index:
    """The split, or an empty one if it has no object to score: its metrics are NaN and select no checkpoint."""
    return index if index.learnable().any() else index.select(np.zeros(0, dtype=np.int64))


def check_determinism(recipe: Recipe, determinism: str, device: torch.device) -> None:
    """Check that a bitwise training on a GPU has no layer that cannot be deterministic.

    Raises:
        ParamsError: The recipe has RoIPool, whose backward pass adds in any order.
    """
    pooling = recipe.roi.pooling if isinstance(recipe, FasterRCNNRecipe) else None
    if determinism == "bitwise" and device.type == "cuda" and pooling == "roi_pool":
        raise ParamsError(
            "params.yaml: train.determinism: bitwise is not possible on a GPU with roi.pooling: roi_pool, which has no "
            "deterministic implementation; set seeded, train.device: cpu, or choose a model with roi_align"
        )


def validate_batch_size(settings: Train, recipe: Recipe, device: torch.device) -> int:
    """Images per forward pass of validation; `auto` needs no more of a GPU's memory than training does."""
    if settings.validate_batch_size != "auto":
        return settings.validate_batch_size
    if device.type == "cpu":
        return MAX_VALIDATE_BATCH_SIZE
    part = recipe.batch_size // (distributed.world_size() * settings.accumulate)
    return min(max(part, 1), MAX_VALIDATE_BATCH_SIZE)


def check_batch_parts(recipe: Recipe, images: int, accumulate: int) -> None:
    """Check that SSDlite never trains on a single image at a time.

    Its last feature map is one cell, where BatchNorm would see one value per channel, without a variance.

    Args:
        recipe: Recipe of any architecture.
        images: Images per batch in this process.
        accumulate: Number of parts that the batch is split into.

    Raises:
        ParamsError: A part has one image.
    """
    if recipe.architecture != "ssdlite" or recipe.image_size > SINGLE_CELL_SIZE:
        return
    if any(part.stop - part.start == 1 for part in split(images, accumulate)):
        raise ParamsError(
            "params.yaml: train.accumulate: SSDlite cannot train on one image at a time, because BatchNorm "
            "needs two values per channel; raise batch_size, or lower train.accumulate or train.devices"
        )
