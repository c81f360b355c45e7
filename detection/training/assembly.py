"""From params and prepared data to a `Job`, ready for the loop."""

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from detection import ranks
from detection.data.loader import Loader, Pictures, loader_workers
from detection.data.prepared import Prepared
from detection.models.backbones import read_weights
from detection.models.build import build_detector, without_weights
from detection.models.hardware import pick_precision
from detection.params import Params
from detection.training import distributed
from detection.training.checkpoint import content_key
from detection.training.loop import Job
from detection.training.validation import Validator

log = logging.getLogger(__name__)


def assemble(params: Params, prepared: Prepared, backbone: Path, device: torch.device, reports: Path) -> Job:
    """Build the detector on its pretrained backbone, the loader, the validator and the checkpoints.

    Args:
        params: The experiment.
        prepared: Its data.
        backbone: What `pretrain` left.
        device: Where to train.
        reports: Where the curves go.

    Raises:
        CheckpointError: The backbone's weights do not fit.
        ParamsError: The batch cannot be shared by so many devices.
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
    index, cache = prepared.index("train"), settings.cache_mb // ranks.count()
    pictures = Pictures(index, prepared.root, recipe, train=True, seed=params.seed, cache_mb=cache)
    loader = Loader(pictures, recipe.batch_size, loader_workers(settings.workers, device), shuffle=True)
    validator = Validator(prepared.index("val"), prepared.root, prepared.classes, recipe, settings.precision)
    key = content_key("train", {"recipe": asdict(recipe), "train": asdict(settings), "seed": params.seed})
    where = device.type if ranks.count() == 1 else f"{ranks.count()} x {device.type}"
    log.info("%s on %s, %s, %s", params.model, params.dataset, where, str(precision).removeprefix("torch."))
    for one in params.overrides:
        log.info("  %s = %s  (%s)", one.key, one.value, one.source)
    return Job(
        detector=detector,
        recipe=recipe,
        settings=settings,
        loader=loader,
        validator=validator,
        device=device,
        precision=precision,
        reports=reports,
        checkpoints=distributed.checkpoints("train", key),
    )
