"""Train a detector on the prepared data, from the pretrained backbone, into one tracked row."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from stages.entry import run

log = logging.getLogger(__name__)
REPORTS = Path("reports/train")


def main() -> None:
    """Reads data/prepared and models/backbone.pt; leaves models/detector.pt and reports/train."""
    import torch

    from detection import params as parameters
    from detection.data.loader import Loader, Pictures, loader_workers
    from detection.data.prepared import Prepared
    from detection.models.backbones import read_weights
    from detection.models.build import build_detector, save_detector, without_weights
    from detection.models.hardware import pick_device, pick_precision
    from detection.tracking.opening import log_training_artifacts, open_row
    from detection.training.checkpoint import Checkpoints, content_key
    from detection.training.loop import STATE, Job, fit
    from detection.training.validation import Validator

    params = parameters.load()
    settings = params.train
    prepared = Prepared.load("data/prepared")
    prepared.check_unchanged("train")
    prepared.check_unchanged("val")
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
    torch.manual_seed(params.seed)

    weights = read_weights("models/backbone.pt", params.recipe.backbone)
    recipe = params.recipe if weights else without_weights(params.recipe)
    detector = build_detector(recipe, len(prepared.classes), weights).to(device).train()
    if settings.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    index, cache = prepared.index("train"), settings.cache_mb
    pictures = Pictures(index, prepared.root, recipe, train=True, seed=params.seed, cache_mb=cache)
    loader = Loader(pictures, recipe.batch_size, loader_workers(settings.workers, device), shuffle=True)
    validator = Validator(prepared.index("val"), prepared.root, prepared.classes, recipe, settings.precision)
    key = content_key("train", {"recipe": asdict(recipe), "train": asdict(settings), "seed": params.seed})
    log.info("%s on %s, %s, %s", params.model, params.dataset, device, str(precision).removeprefix("torch."))
    for one in params.overrides:
        log.info("  %s = %s  (%s)", one.key, one.value, one.source)

    REPORTS.mkdir(parents=True, exist_ok=True)
    made_of = {k: v for k, v in asdict(params).items() if k in ("model", "dataset", "seed", "overrides")}
    made_of |= {"recipe": asdict(recipe), "classes": prepared.classes}
    (REPORTS / "recipe.json").write_text(json.dumps(made_of, indent=2))
    with Checkpoints("train", key).held() as checkpoints:
        saved = checkpoints.load(STATE)
        with open_row(params, out=REPORTS / "run.json", resume=saved["run_id"] if saved else None) as row:
            job = Job(
                detector=detector,
                recipe=recipe,
                settings=settings,
                loader=loader,
                validator=validator,
                device=device,
                precision=precision,
                reports=REPORTS,
                checkpoints=checkpoints,
            )
            summary = {"monitor": settings.monitor, **fit(job, row)}
            (REPORTS / "metrics.json").write_text(json.dumps(summary, indent=2))
            Path("models").mkdir(exist_ok=True)
            target, state = Path("models/detector.pt"), detector.state_dict()
            save_detector(target, state, recipe, prepared.classes, params.model, notes=summary)
            log_training_artifacts(row)


if __name__ == "__main__":
    run(main)
