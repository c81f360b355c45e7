"""A row that a training fills while it runs, through one background thread."""

import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.errors import reason
from detection.files import LockedTemporaryDirectory
from detection.tracking.naming import finite
from detection.tracking.run import RunContext, Status
from detection.tracking.store import Store, tracking_uri
from detection.tracking.system_metrics import PREFIX, SystemMetrics

log = logging.getLogger(__name__)

STEPS_PER_CALL = 20
METRICS_PER_CALL = 1000  # MLflow refuses more
FLUSH_S = 10.0
CLOSE_S = 30.0
RETRY_S = (5.0, 15.0, 60.0, 300.0)

Point = tuple[str, float, int, int]  # name, value, time in ms, step
Job = Callable[[Any, str], object]  # of the client and the row's id


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A row that is there."""

    store: Store
    run_id: str
    latest: Mapping[str, int]
    """The last step that it has of each metric. Steps arrive in order, so that it has all before, too."""


class MlflowRun(RunContext):
    """Collects points and sends them 20 steps at a time; see `Run`.

    What cannot be sent is kept and tried again, with growing pauses; a store that is away when the training
    begins gets the row when it comes. One line says that the store is away, one that it is back.

    Args:
        open_row: Makes the row, or finds that of an interrupted training. Called by the thread, and again
            until it no longer raises.
        opened: What it returned, if it has been called.
    """

    def __init__(self, open_row: Callable[[], OpenRun], opened: OpenRun | None) -> None:
        self._open, self._opened = open_row, opened
        self._points: deque[Point] = deque()
        self._jobs: deque[Job] = deque()
        self._steps = 0
        self._failures = 0 if opened else 1
        self._closing: Status | None = None
        self._wake, self._idle = threading.Event(), threading.Event()
        self._copies = LockedTemporaryDirectory("detection-row-")
        self._machine = self._watched(opened) if opened else None
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()
        if not opened:
            self._wake.set()

    @property
    def id(self) -> str | None:
        """MLflow's run id; None as long as the store has not answered."""
        return self._opened.run_id if self._opened else None

    def log(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """See `Run.log`."""
        self._add(finite(values), step, time_ms)
        self._steps += 1
        if self._steps >= STEPS_PER_CALL:
            self._steps = 0
            self._wake.set()

    def artifact(self, path: Path, folder: str | None) -> None:
        """See `Run.artifact`."""
        try:
            copy = Path(tempfile.mkdtemp(dir=self._copies.name)) / path.name
            shutil.copyfile(path, copy)
        except OSError as error:
            log.warning("%s does not go to the tracked row: %s", path, error)
            return
        self._jobs.append(lambda client, run_id: client.log_artifact(run_id, str(copy), folder))
        self._wake.set()

    def tag(self, key: str, value: str) -> None:
        """See `Run.tag`."""
        self._jobs.append(lambda client, run_id: client.set_tag(run_id, key, value))
        self._wake.set()

    def flush(self) -> None:
        """See `Run.flush`; does not wait for a store that is known to be away."""
        self._idle.clear()
        self._wake.set()
        if not self._failures:
            self._idle.wait(FLUSH_S)

    def close(self, status: Status) -> None:
        """See `Run.close`; waits as long as the store goes on taking what is left."""
        if self._closing is not None:
            return
        self._closing = status
        self._wake.set()
        left = None
        while self._thread.is_alive() and (waiting := len(self._points) + len(self._jobs)) != left:
            left = waiting
            self._thread.join(CLOSE_S)
        if self._thread.is_alive() or self._points or self._jobs or not self._opened:
            log.warning(
                "the MLflow row of this training is incomplete: %s does not answer. Its curves stand in "
                "reports/train; `evaluate` or `detection sync` sends what is missing",
                tracking_uri(),
            )
        self._copies.cleanup()

    def _add(self, values: Mapping[str, float], step: int, time_ms: int) -> None:
        self._points.extend((name, value, time_ms, step) for name, value in values.items())

    def _watched(self, opened: OpenRun) -> SystemMetrics:
        before = [step for name, step in opened.latest.items() if name.startswith(PREFIX)]
        return SystemMetrics(self._add, max(before, default=-1) + 1)

    def _work(self) -> None:
        while self._closing is None:
            self._wake.wait()
            self._wake.clear()
            if self._failures:
                self._pause(RETRY_S[min(self._failures, len(RETRY_S)) - 1])
            self._send()
        if self._machine is not None:
            self._machine.close()
        status = self._closing
        self._jobs.append(lambda client, run_id: client.set_terminated(run_id, status))
        self._send()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._closing is None and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()

    def _send(self) -> None:
        """Send everything pending; what was not sent stays at the head of its queue."""
        try:
            if self._opened is None:
                self._opened = self._open()
                self._machine = self._watched(self._opened)
            self._send_to(self._opened)
        except Exception as error:  # a tracker may fail in any way, and the training goes on
            if not self._failures:
                log.warning(
                    "MLflow at %s does not take the row's values (%s); training goes on, "
                    "the values stand in reports/train and are sent when it is back",
                    tracking_uri(),
                    reason(error),
                )
            self._failures += 1
            self._wake.set()
            return
        if self._failures:
            log.info("MLflow at %s is back; the row is complete again", tracking_uri())
        self._failures = 0
        self._idle.set()

    def _send_to(self, row: OpenRun) -> None:
        client = row.store.client
        while self._points:
            batch = [self._points[i] for i in range(min(len(self._points), METRICS_PER_CALL))]
            if new := [point for point in batch if point[3] > row.latest.get(point[0], -1)]:
                log_points(client, row.run_id, new)
            for _ in batch:
                self._points.popleft()
        while self._jobs:
            self._jobs[0](client, row.run_id)
            self._jobs.popleft()


def log_points(client: Any, run_id: str, points: list[Point]) -> None:
    """Log at most `METRICS_PER_CALL` points in one call."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])
