"""The processes that train one detector together ("ranks"): which one this is, and what they tell each other.

Every function also works where one process trains alone: it is rank 0 of 1, and what it says is what all say.

DDP averages the gradients of the ranks, each of which has an equal share of the batch. A loss that is a mean
over pictures needs nothing more. One that is divided by something counted in the batch (positives, sampled
boxes) is divided by the ranks' mean of that count, and is then the loss of the whole batch:

    loss = sums.sum() / distributed.normalizer(positives.sum())
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def is_main() -> bool:
    """Whether this process is the one that logs, saves and reports: rank 0."""
    return rank() == 0


def mean(value: Tensor) -> Tensor:
    """Mean over the ranks of a tensor that each of them has; no gradient flows through, no device is halted.

    Args:
        value: Tensor of any shape, the same on each rank; whole numbers and booleans become float32.
    """
    value = value.detach()
    if not value.is_floating_point():
        value = value.float()
    if not _together():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def normalizer(counted: Tensor) -> Tensor:
    """What a sum over this rank's share is divided by, to become its part of the whole batch's mean.

    Args:
        counted: Tensor[], how many this rank's share has; in the whole batch none count as one.
    """
    return mean(counted).clamp(min=1 / world_size())


def maximum(*numbers: int) -> list[int]:
    """Of each number the largest that a rank has; all wait for the last one."""
    if not _together():
        return list(numbers)
    values = torch.tensor(numbers)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(value) for value in values]


def gather(value: T) -> list[T]:
    """What each rank has, in order of rank, on every rank; any small object that can be pickled."""
    if not _together():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every rank is here."""
    maximum(0)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
