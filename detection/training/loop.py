"""The training loop, read from top to bottom: periodic jobs, one step, logging, state."""

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detection import distributed
from detection.data.loading.batch import Batch
from detection.data.loading.loader import Loader
from detection.device import autocast
from detection.models.detector import Detector
from detection.models.train_meters import meters, rates
from detection.params.recipe import Recipe
from detection.params.stages import Train
from detection.tracking.run import Run
from detection.training import launch
from detection.training.checkpoint import Checkpoints
from detection.training.history import History, LossBuffer, now_ms
from detection.training.optim import learning_rate_factor, make_optimizer, phase_at, set_learning_rate
from detection.training.progress import Progress
from detection.training.signals import StopSignals
from detection.training.state import CheckpointTimer, State, restore, snapshot
from detection.training.validation import Validator

log = logging.getLogger(__name__)
SAMPLES = "samples"  # a folder of the checkpoint, of the reports and of the row
STATE, BEST = "state.pt", "best_{epoch}.pt"  # files of a checkpoint; the state says which best is its own


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """Everything a training is given."""

    detector: Detector
    """On its device, with its starting weights."""
    recipe: Recipe
    settings: Train
    loader: Loader
    """Of the training split."""
    validator: Validator
    """Of the val split, which may be empty."""
    device: torch.device
    precision: torch.dtype
    reports: Path
    """Where the curves are written."""
    checkpoints: Checkpoints
    """Held by the caller."""

    def length(self) -> tuple[int, int]:
        """Steps of the whole training, and of an epoch."""
        each = len(self.loader)
        return self.recipe.iterations or (self.recipe.epochs or 0) * each, each


def fit(job: TrainingJob, row: Run, interrupts: StopSignals) -> dict[str, float]:
    """Train a detector to the end, or go on with a training that was cut off.

    Leaves the chosen weights in the detector: the best validation's, or the last where there is no val.

    Args:
        job: What is trained, on what, and how.
        row: Where the curves go too.
        interrupts: Open; says whether somebody asked the training to stop.

    Returns:
        `steps`, `epochs`, `seconds`, and where there is a val `best_epoch` and the monitored metric's value.

    Raises:
        DivergedError: The loss is not finite; names the pictures of the batch.
        SystemExit: After SIGTERM or Ctrl-C, once the state is saved.
    """
    settings = job.settings
    steps, steps_per_epoch = job.length()
    network = launch.wrap(job.detector, job.device)
    optimizer = make_optimizer(job.detector, job.recipe.optimizer)
    average = _average(job)
    saved = job.checkpoints.load(STATE)
    state = restore(saved, job.detector, optimizer, average) if saved else State()
    told = meters(job.detector)
    for name, meter in told.items():
        meter.reset(saved["confusion"][name] if saved else None)
    if saved and settings.determinism == "bitwise":
        torch.set_num_threads(saved["threads"])  # sums come out otherwise with another number of them
    history = History(job.reports, saved["history"] if saved else None)
    row.update(state.step)
    buffer = LossBuffer(history, job.loader.dataset.index)
    batches = _stream(job.loader, state.step, steps_per_epoch)
    clock = time.monotonic() - state.seconds
    pace = CheckpointTimer(state.step)
    if saved:
        log.info("going on at step %d of %d", state.step, steps)
    del saved  # as large as the training itself

    with Progress(steps, state.step, settings.log_every) as progress:
        while True:
            epoch, place = divmod(state.step, steps_per_epoch)
            last = state.step >= steps or _stale(state, settings)
            asked, due = distributed.maximum(
                interrupts.signal or 0, pace.due(state.step)
            )  # all at the same step
            epoch_ended = place == 0 and state.step > 0

            # once in a while: score val, keep the best weights, show some pictures; read the meters
            if (
                last or (epoch_ended and epoch % settings.validate_every == 0)
            ) and state.validated < state.step:
                buffer.flush()
                state.validated = state.step
                _validate(job, average, state, history, row, epoch)
                last = last or _stale(state, settings)

            # once in a while, at the end, and before leaving: save everything
            if last or asked or due:
                with pace.saving(state.step):
                    buffer.flush()  # nothing is saved after a loss that is not finite
                    state.seconds = time.monotonic() - clock
                    more = {"history": history.state(), "threads": torch.get_num_threads()}
                    more["confusion"] = {name: meter.total() for name, meter in told.items()}
                    job.checkpoints.save(STATE, snapshot(state, job.detector, optimizer, average, **more))
                    job.checkpoints.keep_only(BEST.format(epoch=state.best_epoch), BEST.format(epoch="*"))
                row.update(state.step)
            if asked and not last:
                log.info("asked to stop: saved at step %d; the same command goes on from there", state.step)
                raise SystemExit(128 + asked)
            if last:
                break

            # at the beginning of a phase of the recipe that wants it: back to the best weights
            place_in_schedule = (state.step, steps, steps_per_epoch, job.recipe.epochs is not None)
            phase, phase_begins, _ = phase_at(job.recipe.schedule, *place_in_schedule)
            if phase.reload_best and state.step == phase_begins:
                _reload_best(job, state)

            # a single training step
            batch = next(batches)
            factor = learning_rate_factor(job.recipe.schedule, *place_in_schedule)
            set_learning_rate(optimizer, factor, phase.freeze_backbone)
            total, losses = _step(job, network, optimizer, batch)
            if average is not None:
                average.update_parameters(job.detector)
            state.step += 1

            # logging; the losses stay on the device until the next line is due
            progressed = state.step / steps_per_epoch
            columns = {
                "step": state.step,
                "epoch": round(progressed, 4),
                "time": now_ms(),
                "lr": job.recipe.optimizer.lr * factor,
            }
            buffer.add(columns, total, losses, batch.rows)
            progress.step(state.step)
            if state.step % settings.log_every == 0:
                progress.show(state.step, progressed, buffer.flush())

    _choose(job, average, state)
    _keep_samples(job)
    job.checkpoints.mark_complete()
    log.info("trained %d steps in %.0f s", state.step, state.seconds)
    summary = {
        "steps": state.step,
        "epochs": state.step / steps_per_epoch,
        "seconds": round(state.seconds, 1),
    }
    if len(job.validator.index):
        summary |= {"best_epoch": state.best_epoch, settings.monitor: state.best}
    return summary


def _stale(state: State, settings: Train) -> bool:
    """Whether val has not risen for so long that the training ends early."""
    return settings.early_stop is not None and state.stale >= settings.early_stop.patience


def _step(
    job: TrainingJob, network: nn.Module, optimizer: Optimizer, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward, backward and update over one batch; returns the total loss and its terms, on the device.

    `batch` is this rank's share of the batch, the losses are those of the whole one.
    """
    sums: dict[str, Tensor] = {}
    for part in split(len(batch.rows), job.settings.accumulate):
        share = len(batch.rows[part]) / len(batch.rows)
        images = batch.images[part].to(job.device, non_blocking=True)
        if job.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(job.device, job.precision):
            losses: dict[str, Tensor] = network(images, batch.targets[part].to(job.device))
        total = torch.stack(list(losses.values())).sum() * share
        total.backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach() * share
    if job.settings.clip_gradients is not None:
        nn.utils.clip_grad_norm_(job.detector.parameters(), job.settings.clip_gradients)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    terms = distributed.mean(torch.stack(list(sums.values())))
    return terms.sum(), dict(zip(sums, terms, strict=True))


def split(pictures: int, parts: int) -> list[slice]:
    """A batch in so many parts or fewer, of one size but for the last."""
    size = -(-pictures // parts)
    return [slice(first, min(first + size, pictures)) for first in range(0, pictures, size)]


def _stream(loader: Loader, step: int, steps_per_epoch: int) -> Iterator[Batch]:
    """All batches from a step on, epoch after epoch."""
    epoch, place = divmod(step, steps_per_epoch)
    while True:
        yield from loader.epoch(epoch, place)
        epoch, place = epoch + 1, 0


def _average(job: TrainingJob) -> AveragedModel | None:
    if job.settings.ema is None:
        return None
    average = get_ema_multi_avg_fn(job.settings.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(job.detector, multi_avg_fn=average, use_buffers=True)


def _validated(job: TrainingJob, average: AveragedModel | None) -> Detector:
    """The weights that are scored and saved: the average where there is one."""
    detector: Any = job.detector if average is None else average.module
    assert isinstance(detector, Detector)
    return detector


def _validate(
    job: TrainingJob, average: AveragedModel | None, state: State, history: History, row: Run, epoch: int
) -> None:
    of_training = _read_meters(job.detector)
    if len(job.validator.index) == 0:
        if of_training:
            history.add_metrics(epoch, state.step, of_training)
        return
    detector = _validated(job, average)
    launch.broadcast_buffers(detector)
    scores, results = job.validator.score(detector)
    history.add_metrics(epoch, state.step, scores | of_training)
    monitor, settings = job.settings.monitor, job.settings
    value = scores[monitor]
    least_rise = settings.early_stop.min_delta if settings.early_stop else 0.0
    state.stale += 1
    if value > state.best + least_rise:
        state.best, state.best_epoch, state.stale = value, epoch, 0
        job.checkpoints.save(BEST.format(epoch=epoch), {"model": detector.state_dict()})
    log.info(
        "epoch %d  val %s %.4f  (best %.4f, epoch %d)", epoch, monitor, value, state.best, state.best_epoch
    )
    if settings.sample_every_epochs and epoch % settings.sample_every_epochs == 0 and distributed.is_main():
        picture = job.checkpoints.folder / SAMPLES / f"epoch_{epoch:03d}.png"
        row.artifact(job.validator.draw(results, settings.sample_images, picture), SAMPLES)


def _read_meters(detector: Detector) -> dict[str, float]:
    """What its classifiers made of their training samples since the last time: `train/rpn_recall`, …."""
    found: dict[str, float] = {}
    for name, meter in meters(detector).items():
        found |= {f"train/{name}_{rate}": value for rate, value in rates(meter.total()).items()}
        meter.reset()
    return found


def _keep_samples(job: TrainingJob) -> None:
    """Bring the pictures of all lives of the training to its reports: DVC deletes those at each start."""
    drawn, kept = job.checkpoints.folder / SAMPLES, job.reports / SAMPLES
    kept.mkdir(exist_ok=True)
    if not distributed.is_main():
        return
    for picture in drawn.glob("*.png"):
        shutil.copyfile(picture, kept / picture.name)
    if not drawn.exists():
        every, pictures = job.settings.sample_every_epochs, len(job.validator.index)
        told = (
            f"no picture was drawn: every {every} epochs (train.sample_every_epochs), of {pictures} of val\n"
        )
        (kept / "none.txt").write_text(told, encoding="utf-8")


def _reload_best(job: TrainingJob, state: State) -> None:
    """Put the best weights so far into the detector; the optimiser keeps its momentum."""
    best = _best(job, state)
    if best:
        job.detector.load_state_dict(best["model"])
        log.info("a new phase at step %d: back to the weights of epoch %d", state.step, state.best_epoch)


def _choose(job: TrainingJob, average: AveragedModel | None, state: State) -> None:
    """Put the chosen weights into the detector."""
    best = _best(job, state)
    job.detector.load_state_dict(best["model"] if best else _validated(job, average).state_dict())


def _best(job: TrainingJob, state: State) -> dict[str, Any] | None:
    """The weights of the best validation; None before the first, and where there is no val."""
    distributed.barrier()  # until rank 0 has written them
    return job.checkpoints.load(BEST.format(epoch=state.best_epoch)) if state.validated else None
