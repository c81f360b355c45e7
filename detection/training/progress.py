"""How far it is: a live line with ETA on a terminal, a plain line every so often elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)
UNTIMED = 3  # the first steps warm caches up and would spoil the estimate


class Progress:
    """Shows the progress of a training.

    Args:
        total: Steps of the whole training.
        done: Steps already taken before.
        every: Steps between plain lines.
    """

    def __init__(self, total: int, done: int, every: int) -> None:
        self.total, self.first, self.every = total, done, every
        self._started: tuple[int, float] | None = None
        self._live: Any = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(), transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: int) -> None:
        """Note that a step was taken."""
        if self._started is None and step - self.first >= UNTIMED:
            self._started = (step, time.monotonic())

    def show(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Show a line: step, share, epoch, values, time a step, ETA."""
        parts = [f"step {step}/{self.total}", f"epoch {epoch:.2f}"]
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        if self._started is not None and step > self._started[0]:
            each = (time.monotonic() - self._started[1]) / (step - self._started[0])
            parts += [f"{each * 1000:.0f} ms/step", f"eta {_clock(each * (self.total - step))}"]
        line = "  ".join(parts)
        if self._live is not None:
            self._live.update(line, refresh=True)
        elif step % self.every == 0 or step == self.total:
            log.info(line)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
