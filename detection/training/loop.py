"""The training loop, from top to bottom: periodic work, one training step, logging."""

import logging
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from detection import distributed
from detection.data.loading.batch import Batch
from detection.data.loading.loader import Loader
from detection.device import autocast
from detection.evaluation.protocol.results import SplitDetections
from detection.models.build import save_detector
from detection.models.detector import Detector
from detection.models.heads import meters, rates
from detection.models.transfer import Transfer
from detection.params.recipe import Recipe
from detection.params.stages import Train
from detection.signals import CheckpointTimer, StopSignals, stopped
from detection.tracking.run import Run
from detection.training.common import data_parallel
from detection.training.common.checkpoint import (
    PARTIAL_SUFFIX,
    STATE_FILE,
    Checkpoints,
    State,
    restore,
    resumed_batches,
    snapshot,
)
from detection.training.common.ema import MovingAverage
from detection.training.common.history import History, LossBuffer, Progress, now_ms
from detection.training.common.optim import (
    freeze_backbone,
    learning_rate_factor,
    make_optimizer,
    phase_at,
    set_learning_rate,
)
from detection.training.validation import Validator

log = logging.getLogger(__name__)
SAMPLES = "samples"
"""Folder of sample images in the checkpoint, the reports and the run's artifacts."""
KEPT = "kept"
"""Folder of the weights of `train.keep_every` in the checkpoint and the reports."""
BEST_FILE = "best_{}.pt"
"""Weights of the best validation, by epoch; the state's `best_epoch` names the current file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """Everything that a training needs."""

    detector: Detector
    """Detector with its initial weights, on `device`."""
    recipe: Recipe
    """Recipe that the detector was built from."""
    settings: Train
    """Section `train` of params.yaml."""
    loader: Loader
    """Batches of the training split."""
    validator: Validator
    """Validation on the val split, which may be empty."""
    device: torch.device
    """Device of this rank."""
    precision: torch.dtype
    """bfloat16 for autocast, or float32."""
    reports: Path
    """Folder of the curves."""
    checkpoints: Checkpoints
    """Checkpoints, locked by the caller."""
    memory_format: torch.memory_format = torch.channels_last
    """Memory format of images and weights."""
    transfer: Transfer | None = None
    """Record of the start weights that were loaded; None: the detector starts from its backbone."""
    train_sample: Validator | None = None
    """Handful of training images that are scored if `val` is empty."""
    model: str = ""
    """Name of the recipe, for the kept weights."""

    def steps(self) -> int:
        """Length of the whole training in optimizer steps."""
        return self.recipe.iterations or (self.recipe.epochs or 0) * len(self.loader)

    def has_val(self) -> bool:
        """Return True if there is a val split."""
        return len(self.validator.index) > 0

    def samples_due(self, epoch: int) -> bool:
        """Return True if sample images are drawn after an epoch."""
        return self.settings.sample_every_epochs > 0 and epoch % self.settings.sample_every_epochs == 0


def fit(job: TrainingJob, run: Run, stop: StopSignals) -> dict[str, float]:
    """Train a detector, or resume its interrupted training, and load the best weights into it.

    The best weights are those with the highest monitored metric on val, or the last ones if val is empty.

    Args:
        job: Detector, data and settings.
        run: MLflow run for the curves.
        stop: Stop signals, already entered.

    Returns:
        `steps`, `epochs`, `seconds`, and with a val split `best_epoch` and the monitored metric.

    Raises:
        DivergedError: The loss is not finite; names the images of the batch.
        SystemExit: SIGTERM or SIGINT was received; the checkpoint is saved.
    """
    settings, schedule, checkpoints = job.settings, job.recipe.schedule, job.checkpoints
    steps, steps_per_epoch = job.steps(), len(job.loader)
    model = data_parallel.wrap(job.detector, job.device)
    optimizer = make_optimizer(job.detector, job.recipe.optimizer)
    ema = None if settings.ema is None else MovingAverage(job.detector, settings.ema)
    saved = checkpoints.load(STATE_FILE)
    state = restore(saved, job.detector, optimizer, ema) if saved else State()
    data_parallel.check_same_start(state.step, job.detector)
    history = History(job.reports, saved["history"] if saved else None)
    run.update(state.step)
    buffer = LossBuffer(history, job.loader.dataset.index)
    batches = resumed_batches(job.loader.epoch, state.step, steps_per_epoch)
    started, timer = time.monotonic() - state.seconds, CheckpointTimer(state.step)
    if saved:
        for name, meter in meters(job.detector).items():
            meter.reset(saved["meters"][name])
        log.info("resuming at step %d of %d", state.step, steps)
    del saved  # as large as the model and the optimizer together

    with Progress(steps, state.step, settings.log_every) as progress:
        while True:
            epoch, step_in_epoch = divmod(state.step, steps_per_epoch)
            epoch_ended = step_in_epoch == 0 and state.step > 0
            last = state.step >= steps or _stop_early(state, settings)
            # all ranks stop and save at the same step
            stop_requested, save_due = distributed.maximum(stop.signal or 0, timer.due(state.step))

            # once in a while: validate, keep the best weights, draw sample detections (all ranks take part)
            validation_due = last or (epoch_ended and epoch % settings.validate_every == 0)
            if validation_due and (state.validated < state.step or steps == 0):  # 0: start weights as they are
                buffer.flush()
                state.validated = state.step
                _validate(job, ema, state, history, run, epoch)
                last = last or _stop_early(state, settings)
            _keep_weights(job, _detector_to_keep(job, ema), state.step)

            # once in a while, at the end, and before stopping: save a checkpoint (only rank 0 writes)
            if last or stop_requested or save_due:
                buffer.flush()  # raises if a loss is not finite: diverged weights are never saved
                state.seconds = time.monotonic() - started
                totals = {name: meter.total() for name, meter in meters(job.detector).items()}
                more = {"history": history.state(), "meters": totals}
                with timer.saving(state.step):
                    checkpoints.save(STATE_FILE, snapshot(state, job.detector, optimizer, ema, **more))
                checkpoints.keep_only(BEST_FILE.format(state.best_epoch), BEST_FILE.format("*"))
                run.update(state.step)
            if last:
                break
            if stop_requested:
                raise stopped(stop_requested, state.step)

            # the learning rate of this step; at the start of a phase maybe back to the best weights
            position = (state.step, steps, steps_per_epoch, job.recipe.epochs is not None)
            phase, phase_start, _ = phase_at(schedule, *position)
            new_phase = state.step == phase_start
            if phase.reload_best and new_phase and _load_best(job, state):
                log.info("new phase at step %d: weights of epoch %d loaded", state.step, state.best_epoch)
            if phase.reset_optimizer and new_phase:
                optimizer.state.clear()  # as a new optimizer: its buffers are made at its first step
            factor = learning_rate_factor(schedule, *position)
            set_learning_rate(optimizer, factor, phase.freeze_backbone)
            if freeze_backbone(optimizer, phase.freeze_backbone):
                del model  # DDP is made for the parameters that have gradients
                model = data_parallel.wrap(job.detector, job.device)

            # a single training step
            batch = next(batches)
            total, losses = _step(job, model, optimizer, batch)
            if ema is not None:
                ema.update(job.detector)
            state.step += 1

            # logging: losses stay on the device until the next log line, since reading them waits for it
            epochs, lr = state.step / steps_per_epoch, job.recipe.optimizer.lr * factor
            row = {"step": state.step, "epoch": round(epochs, 4), "time": now_ms(), "lr": lr}
            buffer.add(row, total, losses, batch.rows)
            progress.step(state.step)
            if state.step % settings.log_every == 0:
                progress.show(state.step, epochs, buffer.flush())

    _load_best(job, state, otherwise=_detector_to_keep(job, ema))
    _copy_to_reports(job)
    checkpoints.mark_complete()
    log.info("trained %d steps in %.0f s", state.step, state.seconds)
    summary = {"steps": state.step, "epochs": state.step / steps_per_epoch, "seconds": round(state.seconds, 1)}
    return summary | ({"best_epoch": state.best_epoch, settings.monitor: state.best} if job.has_val() else {})


def _stop_early(state: State, settings: Train) -> bool:
    """Return True if the monitored metric has not improved for `early_stop.patience` validations."""
    return settings.early_stop is not None and state.stale >= settings.early_stop.patience


def _step(job: TrainingJob, model: nn.Module, optimizer: Optimizer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Run forward, backward and optimizer step on this rank's share of a batch.

    Returns:
        Total loss Tensor[] and its terms by name, on the device, as means over the ranks.
    """
    sums: dict[str, Tensor] = {}
    for part in split(len(batch.rows), job.settings.accumulate):
        weight = len(batch.rows[part]) / len(batch.rows)
        images = batch.images[part].to(job.device, non_blocking=True)
        images = images.contiguous(memory_format=job.memory_format)
        with autocast(job.device, job.precision):
            losses: dict[str, Tensor] = model(images, batch.targets[part].to(job.device))
        total = torch.stack(list(losses.values())).sum() * weight
        total.backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach() * weight
    if job.settings.clip_gradients is not None:
        nn.utils.clip_grad_norm_(job.detector.parameters(), job.settings.clip_gradients)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    terms = distributed.mean(torch.stack(list(sums.values())))
    return terms.sum(), dict(zip(sums, terms, strict=True))


def step_on_a_copy(job: TrainingJob) -> Callable[[], object]:
    """Return a training step on a copy of the detector and the first batch, which leaves the training as it is."""
    copy, batch = replace(job, detector=deepcopy(job.detector)), next(job.loader.epoch(0))
    optimizer = make_optimizer(copy.detector, job.recipe.optimizer)
    return lambda: _step(copy, copy.detector, optimizer, batch)


def split(images: int, parts: int) -> list[slice]:
    """Split a batch into at most `parts` slices of equal size; the last one may be smaller."""
    size = -(-images // parts)
    return [slice(first, min(first + size, images)) for first in range(0, images, size)]


def _detector_to_keep(job: TrainingJob, ema: MovingAverage | None) -> Detector:
    """Return the detector that is validated and saved: the moving average if there is one."""
    detector: Any = job.detector if ema is None else ema.module
    assert isinstance(detector, Detector)
    return detector


def _validate(
    job: TrainingJob, ema: MovingAverage | None, state: State, history: History, run: Run, epoch: int
) -> None:
    """Validate, record the metrics, and save the weights if they are the best so far."""
    train_rates, detector = _read_meters(job.detector), _detector_to_keep(job, ema)
    if not job.has_val():
        if values := train_rates | _score_train_sample(job, detector, run, epoch):
            history.add_metrics(epoch, state.step, values)
        return
    data_parallel.broadcast_buffers(detector)
    metrics, detections = job.validator.validate(detector)
    if job.settings.validation_loss:
        metrics["val_loss"] = job.validator.loss(detector)
    history.add_metrics(epoch, state.step, metrics | train_rates)
    monitor, settings = job.settings.monitor, job.settings
    value = metrics[monitor]
    min_delta = settings.early_stop.min_delta if settings.early_stop else 0.0
    state.stale += 1
    if value > state.best + min_delta:
        state.best, state.best_epoch, state.stale = value, epoch, 0
        job.checkpoints.save(BEST_FILE.format(epoch), {"model": detector.state_dict()})
    log.info("epoch %d  val %s %.4f  (best %.4f, epoch %d)", epoch, monitor, value, state.best, state.best_epoch)
    if job.samples_due(epoch):
        _draw_samples(job, job.validator, detections, run, epoch)


def _score_train_sample(job: TrainingJob, detector: Detector, run: Run, epoch: int) -> dict[str, float]:
    """Score and draw the handful of training images, when samples are due."""
    if job.train_sample is None or not job.samples_due(epoch):
        return {}
    data_parallel.broadcast_buffers(detector)
    metrics, detections = job.train_sample.validate(detector)
    _draw_samples(job, job.train_sample, detections, run, epoch)
    log.info("epoch %d  AP %.4f on %d training images", epoch, metrics["AP"], len(job.train_sample.index))
    return {"train/AP": metrics["AP"], "train/AP50": metrics["AP50"]}


def _draw_samples(job: TrainingJob, validator: Validator, detections: SplitDetections, run: Run, epoch: int) -> None:
    if distributed.is_main():
        path = job.checkpoints.folder / SAMPLES / f"epoch_{epoch:03d}.png"
        run.artifact(validator.draw(detections, job.settings.sample_images, path), SAMPLES)


def _read_meters(detector: Detector) -> dict[str, float]:
    """Return the rates of the training meters, such as `train/rpn_recall`, and reset the meters."""
    values: dict[str, float] = {}
    for name, meter in meters(detector).items():
        values |= {f"train/{name}_{rate}": value for rate, value in rates(meter.total()).items()}
        meter.reset()
    return values


def _keep_weights(job: TrainingJob, detector: Detector, step: int) -> None:
    """Keep the weights of an epoch or an iteration that `train.keep_every` names, as a detector file."""
    unit, length = ("epoch", len(job.loader)) if job.recipe.epochs is not None else ("iteration", 1)
    number, rest = divmod(step, length)
    if job.settings.keep_every is None or rest or not number or number % job.settings.keep_every:
        return
    data_parallel.broadcast_buffers(detector)
    path = job.checkpoints.folder / KEPT / f"{unit}_{number:0{4 if unit == 'epoch' else 7}d}.pt"
    if not distributed.is_main() or path.exists():  # resumed: the same weights
        return
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(PARTIAL_SUFFIX)
    notes = {unit: number}
    save_detector(temporary, detector.state_dict(), job.recipe, job.validator.classes, job.model, notes)
    temporary.replace(path)
    log.info("%s %d: weights kept", unit, number)


def _copy_to_reports(job: TrainingJob) -> None:
    """Copy samples and kept weights from the checkpoint to the reports, which DVC deletes at each start."""
    if not distributed.is_main():
        return
    for folder, pattern in ((SAMPLES, "*.png"), (KEPT, "*.pt")):
        for path in sorted((job.checkpoints.folder / folder).glob(pattern)):
            (job.reports / folder).mkdir(exist_ok=True)
            shutil.copyfile(path, job.reports / folder / path.name)


def _load_best(job: TrainingJob, state: State, otherwise: Detector | None = None) -> bool:
    """Load the weights of the best validation into the detector; the optimizer keeps its momentum.

    Args:
        job: The training.
        state: Its counters.
        otherwise: Detector whose weights are loaded if there was no validation yet, or if val is empty.

    Returns:
        True if the weights of a validation were loaded.
    """
    best = job.checkpoints.load(BEST_FILE.format(state.best_epoch)) if state.validated else None
    if best:
        job.detector.load_state_dict(best["model"])
    elif otherwise is not None:
        job.detector.load_state_dict(otherwise.state_dict())
    return best is not None
