"""When to save: seldom enough to cost next to nothing, often enough that a hard kill costs little."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PAUSE_S = 30.0
PAUSES = 50  # a pause lasts at least so many times as long as the saving before it: at most 2 % of the time


class Pace:
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
