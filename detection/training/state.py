"""What a training is made of at one moment, into a checkpoint and back.

When to save: seldom enough to cost next to nothing, often enough that a hard kill costs little.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from detection import distributed


@dataclass(slots=True)
class State:
    """The numbers that change while training; with the weights and the random numbers, a whole checkpoint."""

    step: int = 0
    """Optimiser steps taken."""
    seconds: float = 0.0
    """Time spent, over all resumptions."""
    best: float = -1.0
    """Highest monitored value on `val`."""
    best_epoch: int = 0
    """The epoch it came from."""
    stale: int = 0
    """Validations since then."""
    validated: int = 0
    """Step of the last validation."""


def snapshot(
    state: State, model: nn.Module, optimizer: Optimizer, average: nn.Module | None, **more: Any
) -> dict[str, Any]:
    """Everything needed to go on as if nothing had happened, random numbers included."""
    return {
        "state": asdict(state),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "random": distributed.gather(torch.get_rng_state()),
        "random_cuda": distributed.gather(torch.cuda.get_rng_state()) if torch.cuda.is_available() else [],
        **more,
    }


def restore(
    saved: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, average: nn.Module | None
) -> State:
    """Put a snapshot back; returns its numbers."""
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if average is not None:
        average.load_state_dict(saved["average"])
    for generators, put in ((saved["random"], torch.set_rng_state), (saved["random_cuda"], _set_cuda)):
        if len(generators) == distributed.world_size():  # else it was saved by another number of devices
            put(generators[distributed.rank()])
    return State(**saved["state"])


def _set_cuda(generator: Tensor) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(generator)


PAUSE_S = 30.0
PAUSES = 50  # a pause lasts at least so many times as long as the saving before it: at most 2 % of the time


class CheckpointTimer:
    """The checkpoints of one life of a training, from its start to its end or to the moment it is killed.

    The first is due after the first step: a training that is killed soon after each start still gets on.

    Args:
        step: Where this life begins.
    """

    def __init__(self, step: int) -> None:
        self._step, self._next = step, 0.0

    def due(self, step: int) -> bool:
        """Whether it is time for the next checkpoint."""
        return step > self._step and time.monotonic() >= self._next

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Time the saving of a checkpoint; it sets when the next one is due."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        self._step, self._next = step, ended + max(PAUSE_S, PAUSES * (ended - started))
