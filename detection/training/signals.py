"""Ctrl-C and SIGTERM as a request that the loop answers between two steps.

A stage opens it before its row and leaves it when the row is closed: a second Ctrl-C cannot cut that short.
"""

import logging
import signal
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class StopSignals:
    """While it is open, SIGINT and SIGTERM only set `signal`; both may come more than once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
