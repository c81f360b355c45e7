"""What a training is made of at one moment, into a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


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
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
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
    torch.set_rng_state(saved["random"])
    generators: list[Tensor] = saved["random_cuda"]
    if torch.cuda.is_available() and len(generators) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(generators)
    return State(**saved["state"])
