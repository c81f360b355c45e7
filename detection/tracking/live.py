"""A row that a training fills while it runs, through one background thread."""

import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detection.tracking.facts import finite
from detection.tracking.row import ClosesItself, Status
from detection.tracking.store import Store

log = logging.getLogger(__name__)

STEPS_PER_CALL = 20
METRICS_PER_CALL = 1000  # MLflow refuses more
FLUSH_S = 10.0
CLOSE_S = 30.0
RETRY_S = (5.0, 15.0, 60.0, 300.0)

Point = tuple[str, float, int, int]  # name, value, time in ms, step


class LiveRow(ClosesItself):
    """Collects points and sends them 20 steps at a time; see `Row`.

    What cannot be sent is kept and tried again, with growing pauses. One line says that the store is away,
    one that it is back.
    """

    def __init__(self, store: Store, run_id: str, *, resumed: bool) -> None:
        self._store, self._id = store, run_id
        self._points: deque[Point] = deque()
        self._jobs: deque[Callable[[], object]] = deque()
        self._steps = 0
        self._failures = 0
        self._closing: Status | None = None
        self._wake, self._idle = threading.Event(), threading.Event()
        self._copies = tempfile.TemporaryDirectory(prefix="detection-row-", ignore_cleanup_errors=True)
        self._system = _system_metrics(store, run_id, resumed)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str | None:
        """MLflow's run id."""
        return self._id

    def log(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """See `Row.log`."""
        self._points.extend((name, value, time_ms, step) for name, value in finite(values).items())
        self._steps += 1
        if self._steps >= STEPS_PER_CALL:
            self._steps = 0
            self._wake.set()

    def artifact(self, path: Path, folder: str) -> None:
        """See `Row.artifact`."""
        try:
            copy = Path(tempfile.mkdtemp(dir=self._copies.name)) / path.name
            shutil.copyfile(path, copy)
        except OSError as error:
            log.warning("%s does not go to the tracked row: %s", path, error)
            return
        self._jobs.append(partial(self._store.client.log_artifact, self._id, str(copy), folder))
        self._wake.set()

    def tag(self, key: str, value: str) -> None:
        """See `Row.tag`."""
        self._jobs.append(partial(self._store.client.set_tag, self._id, key, value))
        self._wake.set()

    def flush(self) -> None:
        """See `Row.flush`; does not wait for a store that is known to be away."""
        self._idle.clear()
        self._wake.set()
        if not self._failures:
            self._idle.wait(FLUSH_S)

    def close(self, status: Status) -> None:
        """See `Row.close`."""
        if self._closing is not None:
            return
        self._closing = status
        self._wake.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive() or self._points or self._jobs:
            log.warning(
                "the MLflow row %s is incomplete: %s does not answer; its curves stand in reports/train",
                self._id,
                self._store.uri,
            )
        self._copies.cleanup()

    def _work(self) -> None:
        while self._closing is None:
            self._wake.wait()
            self._wake.clear()
            if self._failures:
                self._pause(RETRY_S[min(self._failures, len(RETRY_S)) - 1])
            self._send()
        if self._system is not None:
            self._system.finish()
        self._jobs.append(partial(self._store.client.set_terminated, self._id, self._closing))
        self._send()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._closing is None and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()

    def _send(self) -> None:
        """Send everything pending; what was not sent stays at the head of its queue."""
        try:
            while self._points:
                batch = [self._points[i] for i in range(min(len(self._points), METRICS_PER_CALL))]
                log_points(self._store.client, self._id, batch)
                for _ in batch:
                    self._points.popleft()
            while self._jobs:
                self._jobs[0]()
                self._jobs.popleft()
        except Exception as error:  # a tracker may fail in any way, and the training goes on
            if not self._failures:
                log.warning(
                    "MLflow at %s does not take the row's values (%s); training goes on, "
                    "the values stand in reports/train and are sent when it is back",
                    self._store.uri,
                    reason(error),
                )
            self._failures += 1
            self._wake.set()
            return
        if self._failures:
            log.info("MLflow at %s is back; the row is complete again", self._store.uri)
        self._failures = 0
        self._idle.set()


def log_points(client: Any, run_id: str, points: list[Point]) -> None:
    """Log at most `METRICS_PER_CALL` points in one call."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def reason(error: BaseException) -> str:
    """What lay at the bottom of an exception, in one short line: `[Errno 111] Connection refused`."""
    while deeper := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = deeper
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _system_metrics(store: Store, run_id: str, resumed: bool) -> Any:
    """CPU, memory, disk, network and, where NVML is there, GPU load, sampled every 10 s."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    try:
        monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=store.uri)
        monitor.start()
    except Exception as error:
        log.warning("no system metrics in the tracked row: %s", reason(error))
        return None
    return monitor
