"""Train a detector on the prepared data, from a pretrained backbone or a detector, in one MLflow run."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from detection.files import DETECTOR, PREPARED, REPORTS_TRAIN, TRAIN_RUN_JSON, write_json
from detection.params import Params, load
from stages.entry import run

if TYPE_CHECKING:
    import torch

    from detection.signals import StopSignals
    from detection.training.loop import TrainingJob


def main() -> None:
    """Read data/prepared, models/backbone.pt and models/start.pt, write models/detector.pt and reports/train."""
    params = load()
    from detection import launch
    from detection.device import pick_device, pick_devices

    device = pick_device(params.train.device)
    devices = pick_devices(params.train.devices, device, params.recipe.batch_size)
    outputs = (DETECTOR, REPORTS_TRAIN, TRAIN_RUN_JSON)
    launch.run(devices, "stages.train", device, partial(train, params, device), outputs)


def train(params: Params, device: "torch.device") -> None:
    """Train in this process, alone or as one of several ranks."""
    from detection import launch, process_group
    from detection.data.loading.prepared import Prepared
    from detection.signals import StopSignals
    from detection.training.common.environment import determinism
    from detection.training.common.threads import settle_threads
    from detection.training.loop import step_on_a_copy
    from detection.training.setup import build_job, like_start

    params = like_start(params)
    prepared = Prepared.load(PREPARED)
    prepared.check_unchanged("train")
    prepared.check_unchanged("val")
    with launch.reports_folder(REPORTS_TRAIN) as reports, determinism(params.train.determinism):
        job = build_job(params, prepared, device, reports)
        process_group.join(device, "train")
        values = {key: asdict(params)[key] for key in ("model", "dataset", "seed", "overrides")}
        values |= {"recipe": asdict(job.recipe), "classes": prepared.classes}
        values |= {"start": asdict(job.transfer)} if job.transfer else {}
        write_json(reports / "recipe.json", values)
        with job.checkpoints.locked(), StopSignals() as stop:
            settle_threads(job.settings, device, job.steps(), job.checkpoints, partial(step_on_a_copy, job))
            train_in_run(params, job, stop, upright="exif" not in prepared.meta)


def train_in_run(params: Params, job: "TrainingJob", stop: "StopSignals", upright: bool = True) -> None:
    """Open the MLflow run, train, and write the detector."""
    from detection import distributed
    from detection.models.build import save_detector
    from detection.signals import stop_with_workspace
    from detection.tracking.lifecycle import log_training_artifacts, open_run
    from detection.tracking.run import NoRun
    from detection.training.common.environment import write_environment
    from detection.training.loop import fit

    training_id = job.checkpoints.training_id()
    environment = write_environment(job.reports, training_id, job.device, job.precision, params.train.determinism)
    with open_run(params, environment) if distributed.is_main() else NoRun() as mlflow_run:
        with stop_with_workspace():
            summary = {"monitor": job.settings.monitor, **fit(job, mlflow_run, stop)}
        if distributed.is_main():
            write_json(REPORTS_TRAIN / "metrics.json", summary)
            DETECTOR.parent.mkdir(exist_ok=True)
            state, classes, tiles = job.detector.state_dict(), job.validator.classes, job.validator.tiles
            save_detector(DETECTOR, state, job.recipe, classes, params.model, summary, tiles, upright)
            log_training_artifacts(mlflow_run)


if __name__ == "__main__":
    run(main)
