"""Training a backbone as a classifier: one loop for crops of objects and for folders of pictures.

It stops, saves and goes on at any step as the detector's training does, on one device or several.

Letters: B pictures in this process's share of a batch, S side of a picture in pixels.
"""

import logging
import math
import time
from collections.abc import Iterator
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
from detection.training import launch
from detection.training.checkpoint import Checkpoints
from detection.training.history import Table
from detection.training.optim import learning_rate_factor, make_optimizer, set_learning_rate
from detection.training.progress import Progress
from detection.training.signals import StopSignals
from detection.training.state import CheckpointTimer, State, restore, snapshot

log = logging.getLogger(__name__)
STATE = "state.pt"
COLUMNS = ("epoch", "lr", "loss", "accuracy", "val_accuracy")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Iterator[tuple[Tensor, Tensor]]
"""Pictures Tensor[B, 3, S, S], uint8 in 0..255 or float in 0..1, and labels Tensor[B], int64."""


class Examples(Protocol):
    """A training split."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""

    def epoch(self, epoch: int, start: int) -> Batches:
        """This rank's shares of an epoch's batches, the first `start` of them left out."""


class Check(Protocol):
    """A split that is scored."""

    def batches(self) -> Batches:
        """This rank's share of it; together the ranks have each picture once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierJob:
    """Everything that a classifier's training is given."""

    backbone: str
    classes: int
    train: Examples
    val: Check
    optimizer: Optimizer
    schedule: Schedule
    """Milestones in steps."""
    steps: int
    """Of the whole training."""
    log_every: int
    """Steps between log lines."""
    device: torch.device
    precision: torch.dtype
    seed: int
    """Of the first weights."""
    curves: Path
    """The CSV that grows by a row an epoch."""


class Classifier(nn.Module):
    """A backbone's features under global average pooling and one linear layer.

    The networks' own classifiers (VGG's two layers of 4096 above all) are made for 224-pixel pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        self.network = make_backbone(backbone)
        whole: Any = self.network
        if hasattr(whole, "fc"):
            whole.fc = nn.Linear(whole.fc.in_features, classes)
        else:
            widths = [m.out_channels for m in whole.features.modules() if isinstance(m, nn.Conv2d)]
            whole.avgpool = nn.AdaptiveAvgPool2d(1)
            whole.classifier = nn.Linear(widths[-1], classes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits Tensor[B, classes] of Tensor[B, 3, S, S], uint8 in 0..255 or float in 0..1."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def fit(course: ClassifierJob, checkpoints: Checkpoints) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train to the end, or go on with a training that was cut off.

    Args:
        course: What is trained on what.
        checkpoints: Held by the caller.

    Returns:
        The features' state dict, and a row an epoch, see `COLUMNS`; `val_accuracy` is NaN without a val.

    Raises:
        DivergedError: The loss is not finite.
        SystemExit: After SIGTERM or Ctrl-C, once the state is saved.
    """
    torch.manual_seed(course.seed)
    model = Classifier(course.backbone, course.classes).to(course.device)
    model = model.to(memory_format=torch.channels_last)
    network = launch.wrap(model, course.device)
    optimizer = make_optimizer(model, course.optimizer)
    saved = checkpoints.load(STATE)
    state = restore(saved, model, optimizer, None) if saved else State()
    curve = Table(course.curves, COLUMNS, saved["curve"] if saved else ())
    sums = (saved["sums"] if saved else torch.zeros(3)).to(course.device)  # loss, accuracy, steps of the row
    per_epoch = len(course.train)
    batches = _stream(course.train, state.step, per_epoch)
    clock, pace = time.monotonic() - state.seconds, CheckpointTimer(state.step)
    if saved:
        log.info("going on at step %d of %d", state.step, course.steps)
    del saved  # as large as the training itself

    with StopSignals() as interrupts, Progress(course.steps, state.step, course.log_every) as progress:
        while True:
            last = state.step >= course.steps
            asked, due = distributed.maximum(
                interrupts.signal or 0, pace.due(state.step)
            )  # all at the same step
            epoch_ended = state.step % per_epoch == 0 and state.step > 0

            # once in a while: a row of the curve
            if (last or epoch_ended) and state.validated < state.step:
                state.validated = state.step
                launch.broadcast_buffers(model)
                values = {**_means(sums, state.step), "val_accuracy": _accuracy(model, course)}
                epoch = state.step / per_epoch
                curve.extend([{"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], **values}])
                log.info("epoch %.2f  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), epoch)
                sums.zero_()

            # once in a while, at the end, and before leaving: save everything
            if last or asked or due:
                with pace.saving(state.step):
                    _means(sums, state.step)  # nothing is saved after a loss that is not finite
                    state.seconds = time.monotonic() - clock
                    more = {"curve": curve.rows, "sums": sums.cpu()}
                    checkpoints.save(STATE, snapshot(state, model, optimizer, None, **more))
            if asked and not last:
                log.info("asked to stop: saved at step %d; the same command goes on from there", state.step)
                raise SystemExit(128 + asked)
            if last:
                break

            # a single training step
            pixels, labels = next(batches)
            factor = learning_rate_factor(course.schedule, state.step, course.steps, per_epoch, False)
            set_learning_rate(optimizer, factor)
            labels = labels.to(course.device, non_blocking=True)
            with autocast(course.device, course.precision):
                logits = network(_placed(pixels, course.device)).float()
                loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            state.step += 1

            # logging; the sums stay on the device until the next line is due
            accuracy = (logits.detach().argmax(1) == labels).float().mean()
            sums += distributed.mean(torch.stack([loss.detach(), accuracy, torch.ones_like(accuracy)]))
            progress.step(state.step)
            if state.step % course.log_every == 0:
                progress.show(state.step, state.step / per_epoch, _means(sums, state.step))

    return {k: v.cpu() for k, v in feature_state(model.network).items()}, curve.rows


def _stream(train: Examples, step: int, per_epoch: int) -> Batches:
    """All batches from a step on, epoch after epoch."""
    epoch, place = divmod(step, per_epoch)
    while True:
        yield from train.epoch(epoch, place)
        epoch, place = epoch + 1, 0


def _placed(pixels: Tensor, device: torch.device) -> Tensor:
    return pixels.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def _means(sums: Tensor, step: int) -> dict[str, float]:
    """Mean loss and accuracy since the curve's last row; refuses a loss that is not finite."""
    loss, accuracy, count = sums.tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss of pretraining is no longer finite at step {step}; lower its lr "
            "(pretrain.crops or pretrain.imagefolder). The last good checkpoint is kept"
        )
    return {"loss": loss / max(count, 1), "accuracy": accuracy / max(count, 1)}


def _accuracy(model: nn.Module, course: ClassifierJob) -> float:
    """Share of val told right at the first guess; NaN where there is none."""
    model.eval()
    right, seen = torch.zeros((), device=course.device), 0
    with torch.inference_mode(), autocast(course.device, course.precision):
        for pixels, labels in course.val.batches():
            guesses = model(_placed(pixels, course.device)).argmax(1)
            right += (guesses == labels.to(course.device)).sum()
            seen += len(labels)
    model.train()
    counts = distributed.gather((float(right), seen))
    total = sum(count for _, count in counts)
    return sum(one for one, _ in counts) / total if total else float("nan")
