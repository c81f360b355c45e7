"""Training of a backbone as an image classifier, on crops of objects or on an ImageFolder.

Stops, saves and resumes at any step like the detector's training, on one device or several.

Letters: B images in this rank's share of a batch, S side of an image in pixels.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detection import distributed
from detection.device import autocast
from detection.errors import DivergedError
from detection.models.backbones import feature_state, make_backbone
from detection.params.recipe_base import Optimizer, Schedule
from detection.signals import CheckpointTimer, StopSignals, stopped
from detection.training.common import data_parallel
from detection.training.common.checkpoint import STATE_FILE, Checkpoints, State, restore, resumed_batches, snapshot
from detection.training.common.history import CsvTable, Progress
from detection.training.common.optim import learning_rate_factor, make_optimizer, set_learning_rate

log = logging.getLogger(__name__)
COLUMNS = ("epoch", "lr", "loss", "accuracy", "val_accuracy")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VAL_BATCH_SIZE = 256
Batches = Iterator[tuple[Tensor, Tensor]]
"""Images Tensor[B, 3, S, S], uint8 in 0..255 or float in 0..1, and labels Tensor[B], int64."""


class ClassificationData(Protocol):
    """Training and validation batches of a classification dataset."""

    def __len__(self) -> int:
        """Training batches per epoch."""

    def train_batches(self, epoch: int, skip: int) -> Batches:
        """This rank's shares of an epoch's batches, without the first `skip`."""

    def val_batches(self) -> Batches:
        """This rank's share of the val split; each image is in the share of exactly one rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierJob:
    """Everything that the training of a classifier needs."""

    backbone: str
    """Name of the backbone."""
    classes: int
    """Number of classes, background included."""
    data: ClassificationData
    """Training and val split."""
    optimizer: Optimizer
    """Settings of the optimizer."""
    schedule: Schedule
    """Learning-rate schedule; milestones in steps."""
    steps: int
    """Length of the training."""
    log_every: int
    """Steps between log lines."""
    device: torch.device
    """Device of this rank."""
    precision: torch.dtype
    """bfloat16 for autocast, or float32."""
    seed: int
    """Seed of the initial weights."""
    curves: Path
    """CSV file that gets one row per epoch."""


class Classifier(nn.Module):
    """Features of a backbone, global average pooling, and one linear layer.

    The backbones' own classifiers, such as VGG's two layers of 4096, are made for images of 224 pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        self.network = make_backbone(backbone)
        network: Any = self.network
        if hasattr(network, "fc"):
            network.fc = nn.Linear(network.fc.in_features, classes)
        else:
            widths = [m.out_channels for m in network.features.modules() if isinstance(m, nn.Conv2d)]
            network.avgpool = nn.AdaptiveAvgPool2d(1)
            network.classifier = nn.Linear(widths[-1], classes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits Tensor[B, classes] of Tensor[B, 3, S, S], uint8 in 0..255 or float in 0..1."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def fit(job: ClassifierJob, checkpoints: Checkpoints) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train a classifier, or resume its interrupted training; `loop.fit` explains the order.

    Args:
        job: Backbone, data and settings.
        checkpoints: Checkpoints, locked by the caller.

    Returns:
        State dict of the features, and rows of `COLUMNS`, one per epoch; `val_accuracy` is NaN without val.

    Raises:
        DivergedError: The loss is not finite.
        SystemExit: SIGTERM or SIGINT was received; the checkpoint is saved.
    """
    torch.manual_seed(job.seed)
    model = Classifier(job.backbone, job.classes).to(job.device)
    model = model.to(memory_format=torch.channels_last)
    network = data_parallel.wrap(model, job.device)
    optimizer = make_optimizer(model, job.optimizer)
    saved, steps_per_epoch = checkpoints.load(STATE_FILE), len(job.data)
    state = restore(saved, model, optimizer, None) if saved else State()
    data_parallel.check_same_start(state.step, model)
    curve = CsvTable(job.curves, COLUMNS, saved["curve"] if saved else ())
    # loss, accuracy and number of steps since the curve's last row; on the device until they are read
    sums = (saved["sums"] if saved else torch.zeros(3)).to(job.device)
    batches = resumed_batches(job.data.train_batches, state.step, steps_per_epoch)
    started, timer = time.monotonic() - state.seconds, CheckpointTimer(state.step)
    if saved:
        log.info("resuming at step %d of %d", state.step, job.steps)
    del saved

    with StopSignals() as stop, Progress(job.steps, state.step, job.log_every) as progress:
        while True:
            epochs, last = state.step / steps_per_epoch, state.step >= job.steps
            stop_requested, save_due = distributed.maximum(stop.signal or 0, timer.due(state.step))

            # once in a while: add a row to the curve (all ranks take part)
            if (last or state.step % steps_per_epoch == 0) and state.validated < state.step:
                state.validated = state.step
                data_parallel.broadcast_buffers(model)
                values = {**_means(sums, state.step), "val_accuracy": _accuracy(model, job)}
                curve.extend([{"epoch": epochs, "lr": optimizer.param_groups[0]["lr"], **values}])
                log.info("epoch %.2f  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), epochs)
                sums.zero_()

            # once in a while, at the end, and before stopping: save a checkpoint (only rank 0 writes)
            if last or stop_requested or save_due:
                with timer.saving(state.step):
                    _means(sums, state.step)  # raises if the loss is not finite: never saved
                    state.seconds = time.monotonic() - started
                    more = {"curve": curve.rows, "sums": sums.cpu()}
                    checkpoints.save(STATE_FILE, snapshot(state, model, optimizer, None, **more))
            if last:
                return {k: v.cpu() for k, v in feature_state(model.network).items()}, curve.rows
            if stop_requested:
                raise stopped(stop_requested, state.step)

            # a single training step
            images, labels = next(batches)
            set_learning_rate(
                optimizer, learning_rate_factor(job.schedule, state.step, job.steps, steps_per_epoch, False)
            )
            sums += _step(job, network, optimizer, images, labels)
            state.step += 1

            # logging
            progress.step(state.step)
            if state.step % job.log_every == 0:
                progress.show(state.step, state.step / steps_per_epoch, _means(sums, state.step))


def step_on_a_copy(job: ClassifierJob) -> Callable[[], object]:
    """Return a training step on a classifier of its own and the first batch."""
    model = Classifier(job.backbone, job.classes).to(job.device).to(memory_format=torch.channels_last)
    optimizer, (images, labels) = make_optimizer(model, job.optimizer), next(job.data.train_batches(0, 0))
    return lambda: _step(job, model, optimizer, images, labels)


def _step(
    job: ClassifierJob, network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Tensor:
    """Run one training step; return Tensor[3] of loss, accuracy and 1 as means over the ranks."""
    labels = labels.to(job.device, non_blocking=True)
    with autocast(job.device, job.precision):
        logits = network(_to_device(images, job.device)).float()
        loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    accuracy = (logits.detach().argmax(1) == labels).float().mean()
    return distributed.mean(torch.stack([loss.detach(), accuracy, torch.ones_like(accuracy)]))


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def _means(sums: Tensor, step: int) -> dict[str, float]:
    """Return mean loss and accuracy since the curve's last row.

    Raises:
        DivergedError: The loss is not finite.
    """
    loss, accuracy, count = sums.tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss of pretraining is not finite at step {step}; lower lr in pretrain.crops or "
            "pretrain.imagefolder. The last checkpoint is kept"
        )
    return {"loss": loss / max(count, 1), "accuracy": accuracy / max(count, 1)}


def _accuracy(model: nn.Module, job: ClassifierJob) -> float:
    """Top-1 accuracy on val over all ranks; NaN if val is empty."""
    model.eval()
    correct, seen = torch.zeros((), device=job.device), 0
    with torch.inference_mode(), autocast(job.device, job.precision):
        for images, labels in job.data.val_batches():
            predicted = model(_to_device(images, job.device)).argmax(1)
            correct += (predicted == labels.to(job.device)).sum()
            seen += len(labels)
    model.train()
    counts = distributed.gather((float(correct), seen))
    total = sum(count for _, count in counts)
    return sum(count for count, _ in counts) / total if total else float("nan")
