"""Train a detector on the prepared data, from the pretrained backbone, into one tracked row."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detection.params import Params, load
from stages.entry import run

if TYPE_CHECKING:
    import torch

    from detection.training.loop import TrainingJob
    from detection.training.signals import StopSignals

REPORTS = Path("reports/train")
BACKBONE, DETECTOR = Path("models/backbone.pt"), Path("models/detector.pt")


def main() -> None:
    """Reads data/prepared and models/backbone.pt; leaves models/detector.pt and reports/train."""
    params = load()
    from detection.device import pick_device, pick_devices
    from detection.training import launch

    device = pick_device(params.train.device)
    devices = pick_devices(params.train.devices, device, params.recipe.batch_size)
    launch.run(devices, "stages.train", device, partial(train, params, device))


def train(params: Params, device: "torch.device") -> None:
    """Train in this process, alone or as one of several that share each batch."""
    from detection.data.prepared import Prepared
    from detection.training import launch
    from detection.training.environment import determinism
    from detection.training.setup import build_job
    from detection.training.signals import StopSignals

    prepared = Prepared.load("data/prepared")
    prepared.check_unchanged("train")
    prepared.check_unchanged("val")
    with launch.folder(REPORTS) as reports, determinism(params.train.determinism):
        job = build_job(params, prepared, BACKBONE, device, reports)
        made_of = {k: v for k, v in asdict(params).items() if k in ("model", "dataset", "seed", "overrides")}
        made_of |= {"recipe": asdict(job.recipe), "classes": prepared.classes}
        reports.mkdir(parents=True, exist_ok=True)
        (reports / "recipe.json").write_text(json.dumps(made_of, indent=2))
        with job.checkpoints.held(), StopSignals() as interrupts:
            fill_row(params, job, interrupts)


def fill_row(params: Params, job: "TrainingJob", interrupts: "StopSignals") -> None:
    """Open the row, train into it, and leave the detector."""
    from detection import distributed
    from detection.models.build import save_detector
    from detection.tracking.lifecycle import log_training_artifacts, open_run
    from detection.tracking.run import NoRun
    from detection.training.environment import write_environment
    from detection.training.loop import fit

    training = job.checkpoints.training()
    made_in = write_environment(job.reports, training, job.device, job.precision, params.train.determinism)
    with open_run(params, made_in) if distributed.is_main() else NoRun() as row:
        summary = {"monitor": job.settings.monitor, **fit(job, row, interrupts)}
        if distributed.is_main():
            (REPORTS / "metrics.json").write_text(json.dumps(summary, indent=2))
            DETECTOR.parent.mkdir(exist_ok=True)
            recipe, classes = job.recipe, job.validator.classes
            save_detector(DETECTOR, job.detector.state_dict(), recipe, classes, params.model, notes=summary)
            log_training_artifacts(row)


if __name__ == "__main__":
    run(main)
