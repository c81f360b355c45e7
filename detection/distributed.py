"""Communication between the processes (ranks) that train one detector together.

In a single process every function is a no-op: rank 0 of 1.

DDP averages the gradients of the ranks, each of which has an equal share of the batch. A loss that is a mean
over images needs nothing else. A loss divided by a count over the batch (positives, sampled boxes) is divided
by the mean of that count over the ranks, and then equals the loss of the whole batch:

    loss = sums.sum() / distributed.normalizer(positives.sum())

A launched process knows its rank before it joins the group (`expect`), so that it can fork the loaders' workers
while it has no communication threads. Collectives work only after it has joined.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_expected = (0, 1)
"""Rank and number of ranks of this process until it joins the group."""


def expect(rank: int, ranks: int) -> None:
    """Set the rank and the number of ranks of this process, which joins the group later."""
    global _expected
    _expected = (rank, ranks)


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if _initialized() else _expected[0]


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _initialized() else _expected[1]


def is_main() -> bool:
    """Return whether this process is rank 0, which logs, saves and reports."""
    return rank() == 0


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the ranks; not differentiable, without host synchronization.

    Args:
        value: Tensor of any shape, the same on each rank; integers and booleans become float32.
    """
    value = value.detach()
    if not value.is_floating_point():
        value = value.float()
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def normalizer(count: Tensor) -> Tensor:
    """Divisor that turns this rank's sum of losses into its part of the mean over the whole batch.

    Args:
        count: Tensor[], count on this rank; the global count is clamped to at least 1.
    """
    return mean(count).clamp(min=1 / world_size())


def maximum(*numbers: int) -> list[int]:
    """Maximum of each number over the ranks; waits for all of them."""
    if world_size() == 1:
        return list(numbers)
    values = torch.tensor(numbers)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [int(value) for value in values]


def gather(value: T) -> list[T]:
    """Values of all ranks in order of rank, on every rank; any small object that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def broadcast(value: T) -> T:
    """Value of rank 0 on every rank; any object that can be pickled, tensors on the CPU included."""
    if world_size() == 1:
        return value
    values = [value if is_main() else None]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]  # type: ignore[return-value]


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
