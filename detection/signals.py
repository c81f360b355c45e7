"""Requests that the training loop answers between two steps: to stop, and to save a checkpoint."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

log = logging.getLogger(__name__)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler or `docker stop`, and a terminal that is closed."""
LAUNCHER = "DETECTION_LAUNCHER"
"""Variable of a rank: process id of the launcher that started it, with which it ends."""
CHECKPOINT_INTERVAL_S = 30.0
"""Shortest time between two periodic checkpoints."""
MIN_INTERVAL_PER_SAVE = 50
"""The interval is at least this many times the duration of the last save, which limits saving to 2 %."""


@contextmanager
def stop_handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals of `STOPPING`. SIGHUP stays ignored where it is, as under `nohup`."""
    numbers = [one for one in STOPPING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handling in previous.items():
            signal.signal(number, handling)


class StopSignals:
    """Context in which the signals of `STOPPING` only set `signal`; repeated ones have no further effect.

    A stage enters it before it opens its run and leaves it after the run is closed, so that a second Ctrl-C
    cannot interrupt the closing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._context = stop_handler(self._handle)

    def __enter__(self) -> Self:
        self._context.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(error_type, error, trace)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number


@contextmanager
def stop_with_workspace() -> Iterator[None]:
    """Treat the deletion of the working directory as a stop: `dvc queue stop --kill` does it while a training lives.

    The rerun resumes at the last checkpoint, which lies in the main repository.

    Raises:
        SystemExit: The folder is gone.
    """
    folder = Path.cwd()
    try:
        yield
    except FileNotFoundError:
        if folder.is_dir():
            raise
        log.info("stopped: the workspace %s was deleted; rerun the experiment to resume", folder)
        raise SystemExit(128 + signal.SIGTERM) from None


def stopped(number: int, step: int) -> SystemExit:
    """Log that a signal stopped the training, and return the exit with the shell's code for it, 128 + n."""
    name = signal.Signals(number).name
    log.info("stopped by %s at step %d, checkpoint saved; rerun the command to resume", name, step)
    return SystemExit(128 + number)


class CheckpointTimer:
    """Schedule of the periodic checkpoints between the start of a process and its end.

    The first is due after the first step, so that a training that is always killed soon after its start still
    makes progress.

    Args:
        step: Step at which the process starts.
    """

    def __init__(self, step: int) -> None:
        self._saved_step, self._next_time = step, 0.0

    def due(self, step: int) -> bool:
        """Return True if a checkpoint is due at this step."""
        return step > self._saved_step and time.monotonic() >= self._next_time

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Measure a save; its duration determines when the next one is due."""
        started = time.monotonic()
        yield
        ended = time.monotonic()
        interval = max(CHECKPOINT_INTERVAL_S, MIN_INTERVAL_PER_SAVE * (ended - started))
        self._saved_step, self._next_time = step, ended + interval
