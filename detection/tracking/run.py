"""The MLflow run of a training, as the training loop sees it, and its system metrics (`system/...`).

Importing this module does not import mlflow.
"""

import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from detection.errors import reason
from detection.files import REPORTS, LockedTemporaryDirectory
from detection.tracking.artifacts import Artifacts, Progress
from detection.tracking.client import finite
from detection.tracking.store import display_uri, failure
from detection.tracking.uploader import Point, Uploader, log_points

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 30.0
RETRY_INTERVALS_S = (5.0, 15.0, 60.0, 300.0)

Status = Literal["FINISHED", "FAILED", "KILLED"]
OpenRun = tuple[Any, str]
"""`mlflow.MlflowClient` and run id."""
Job = Callable[[Any, str], object]
"""Short call with the client and the run id."""
Transfer = Callable[[Any, str, Artifacts], object]
"""Call that may take long; gets the run's artifacts too, whose `progress` it reports to."""


class Run:
    """Interface of a run; this base class discards everything.

    No method raises or waits for a server. As a context manager a run closes itself: FINISHED, KILLED after
    `KeyboardInterrupt` and `SystemExit`, or FAILED after any other exception, with the tag `error`.
    """

    @property
    def id(self) -> str | None:
        """MLflow's run id; None as long as no run has been created."""
        return None

    def update(self, step: int) -> None:
        """Send the curves under `reports/` up to an optimizer step, in the background; called after each checkpoint.

        Args:
            step: Last step that a checkpoint holds. Later steps may be repeated after a hard kill.
        """

    def artifact(self, path: Path, folder: str | None) -> None:
        """Store a copy of a file in a folder of the run, or at its top; the file may change afterwards."""

    def transfer(self, transfer: Transfer) -> None:
        """Make a call that may take long, after everything before it is sent."""

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""

    def close(self, status: Status) -> None:
        """Send the rest and set the final status. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        elif issubclass(kind, Exception):
            self.tag("error", (str(error) or kind.__name__)[:1000])
            self.close("FAILED")
        else:
            self.close("KILLED")


class NoRun(Run):
    """Run of a training that is not tracked."""


class MlflowRun(Run):
    """A run that one background thread fills with curves, system metrics, files and tags.

    What cannot be sent is kept and sent later, with growing intervals between the attempts. One warning says
    that the server is down, one line that it is back.

    Args:
        open_run: Creates the run, or finds that of an interrupted training. The thread calls it until it
            succeeds.
        opened: Its result, if it has been called already.
        reports: Folder of the curves.
    """

    def __init__(self, open_run: Callable[[], OpenRun], opened: OpenRun | None, reports: Path = REPORTS) -> None:
        self._open, self._opened, self._reports = open_run, opened, reports.absolute()
        self._uploader: Uploader | None = None
        self._system: SystemMetrics | None = None
        self._until: int | None = None
        self._artifacts: Artifacts | None = None
        self._jobs: deque[Job] = deque()
        self._transfers: deque[Transfer] = deque()
        self._progress, self._failures = Progress(), 0 if opened else 1
        self._retry_at = 0.0 if opened else time.monotonic() + RETRY_INTERVALS_S[0]
        self._closing: Status | None = None
        self._wake = threading.Event()
        self._copies = LockedTemporaryDirectory("detection-run-")
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str | None:
        """See `Run.id`; None as long as the server has not answered."""
        return self._opened[1] if self._opened else None

    def update(self, step: int) -> None:
        """See `Run.update`."""
        self._until = step
        self._wake.set()

    def artifact(self, path: Path, folder: str | None) -> None:
        """See `Run.artifact`."""
        try:
            copy = Path(tempfile.mkdtemp(dir=self._copies.name)) / path.name
            shutil.copyfile(path, copy)
        except OSError as error:
            log.warning("%s is not stored in the MLflow run: %s", path, error)
            return
        self.transfer(lambda client, run_id, artifacts: artifacts.send(copy, folder))

    def transfer(self, transfer: Transfer) -> None:
        """See `Run.transfer`."""
        self._transfers.append(transfer)
        self._wake.set()

    def tag(self, key: str, value: str) -> None:
        """See `Run.tag`."""
        self._jobs.append(lambda client, run_id: client.set_tag(run_id, key, value))
        self._wake.set()

    def close(self, status: Status) -> None:
        """See `Run.close`; waits as long as the server accepts what is left."""
        if self._closing is not None:
            return
        self._closing = status
        self._wake.set()
        before = -1
        while self._thread.is_alive() and (self._progress.count != before or time.monotonic() < self._progress.until):
            before = self._progress.count
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive() or self._failures:
            log.warning(
                "the MLflow run is incomplete: %s does not answer. The curves are in reports/train; "
                "`evaluate` or `detection sync` sends what is missing",
                display_uri(),
            )
        self._copies.cleanup()

    def _work(self) -> None:
        """Body of the thread."""
        while self._closing is None:
            if self._system and (points := self._system.sample()):
                self._jobs.append(partial(log_points, points=points))
            if time.monotonic() >= self._retry_at:
                self._send()
            pause = self._retry_at - time.monotonic()
            self._wake.wait(min(pause, SAMPLE_INTERVAL_S) if pause > 0 else SAMPLE_INTERVAL_S)
            self._wake.clear()
        self._send()

    def _send(self) -> None:
        """Send everything pending; what was not sent stays at the head of its queue.

        Files come last: a run whose files fail has its curves, and ends.
        """
        try:
            self._send_values()
            try:
                while self._transfers and self._opened and self._artifacts:
                    self._transfers[0](*self._opened, self._artifacts)
                    self._transfers.popleft()
                    self._progress.advance()
            finally:
                if self._closing and self._opened:
                    client, run_id = self._opened
                    client.set_terminated(run_id, self._closing)
        except Exception as error:  # MLflow raises errors of any type
            if not self._failures:
                log.warning(
                    "%s; training continues, the curves are in reports/train and are sent when it is back",
                    failure(error),
                )
            self._retry_at = time.monotonic() + RETRY_INTERVALS_S[min(self._failures, len(RETRY_INTERVALS_S) - 1)]
            self._failures += 1
            self._uploader = None
        else:
            if self._failures:
                log.info("MLflow at %s is back; the run is up to date", display_uri())
            self._failures = 0

    def _send_values(self) -> None:
        """Send points and tags."""
        if self._opened is None:
            self._opened = self._open()
        if self._uploader is None:
            self._opened = self._connect(*self._opened)
        assert self._uploader
        if self._until is not None:
            for _ in self._uploader.send(None if self._closing else self._until):
                self._progress.advance()
        while self._jobs:
            self._jobs[0](*self._opened)
            self._jobs.popleft()
            self._progress.advance()

    def _connect(self, client: Any, run_id: str) -> OpenRun:
        """Make the uploaders of the run; returns it, or the one in its place if it was deleted.

        Of two runs that two clones created for one training at once, the younger one is deleted.
        """
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            client, run_id = self._open()
            run = client.get_run(run_id)
        self._uploader = Uploader(client, run_id, self._reports)
        self._artifacts = Artifacts(client, run.info.artifact_uri, self._progress)
        self._system = self._system or SystemMetrics(self._uploader.latest)
        return client, run_id


SAMPLE_INTERVAL_S = 10.0
PREFIX = "system/"
NVIDIA_DEVICE = Path("/dev/nvidiactl")
"""Device file of NVIDIA's driver; absent on machines without a GPU."""


class SystemMetrics:
    """MLflow's samplers without MLflow's thread, which ends at the first call that a server does not answer.

    Args:
        latest: Last step of each metric of the run; a resumed run continues the numbering.
    """

    def __init__(self, latest: Mapping[str, int]) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._samplers: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpu()]
        self._step = max((step for name, step in latest.items() if name.startswith(PREFIX)), default=-1)
        self._due = time.monotonic() + SAMPLE_INTERVAL_S

    def seconds_left(self) -> float:
        """Seconds until the next sample is due."""
        return max(0.0, self._due - time.monotonic())

    def sample(self) -> list[Point]:
        """Points of a new sample; none before it is due."""
        if self.seconds_left():
            return []
        self._due = time.monotonic() + SAMPLE_INTERVAL_S
        self._step += 1
        values: dict[str, float] = {}
        for sampler in list(self._samplers):
            try:
                sampler.collect_metrics()
                values |= {PREFIX + name: value for name, value in sampler.aggregate_metrics().items()}
                sampler.clear_metrics()
            except Exception as error:  # a driver that was replaced, a GPU that was lost
                self._samplers.remove(sampler)
                log.warning("no more system metrics of %s: %s", type(sampler).__name__, reason(error))
        now = time.time_ns() // 1_000_000
        return [(name, value, now, self._step) for name, value in finite(values).items()]


def _gpu() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [GPUMonitor()]
    except Exception as error:  # of NVML
        if NVIDIA_DEVICE.exists():
            log.warning("no system metrics of the GPU: %s", reason(error))
        return []
