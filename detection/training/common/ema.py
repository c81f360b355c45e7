"""Exponential moving average of a model's weights."""

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn


class MovingAverage(nn.Module):
    """Copy of a model that follows its weights: `average += (1 - decay) * (weights - average)` at each step.

    The first update copies the weights. Gives the values of `torch.optim.swa_utils.AveragedModel` with buffers, but
    never waits for a GPU, and copies counters instead of averaging them.

    Args:
        model: The model.
        decay: Decay per update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights and buffers."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point() and self.updates > 0]
        if floats:
            averages, values = map(list, zip(*floats, strict=True))
            torch._foreach_lerp_(averages, values, 1 - self.decay)
        for average, value in pairs:
            if self.updates == 0 or not average.is_floating_point():
                average.copy_(value, non_blocking=True)
        self.updates += 1

    def get_extra_state(self) -> int:
        """Number of updates, for the checkpoint."""
        return self.updates

    def set_extra_state(self, state: Any) -> None:
        """Restore the number of updates."""
        self.updates = state


def _tensors(model: nn.Module) -> chain[torch.Tensor]:
    return chain(model.parameters(), model.buffers())
