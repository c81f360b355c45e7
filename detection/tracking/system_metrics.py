"""What the machine is busy with while it trains, as curves `system/...` of the row."""

import threading
import time
from collections.abc import Callable

from detection.tracking.naming import finite

EVERY_S = 10.0
PREFIX = "system/"
Sink = Callable[[dict[str, float], int, int], None]
"""Takes values by name, the sample's number and its time in ms."""


class SystemMetrics:
    """Samples CPU, memory, disk, network and, where NVML is there, the GPU, in a thread of its own.

    The samplers are MLflow's. Its own thread around them ends for good at the first call that a server does
    not answer, so the values go the way of all others.

    Args:
        sink: Where the samples go.
        first: Number of the first; a resumed row counts on.
    """

    def __init__(self, sink: Sink, first: int) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._samplers = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpu()]
        self._sink, self._number = sink, first
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sample no more."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(EVERY_S):
            values: dict[str, float] = {}
            for sampler in self._samplers:
                sampler.collect_metrics()
                values |= sampler.aggregate_metrics()
                sampler.clear_metrics()
            named = {PREFIX + name: value for name, value in values.items()}
            self._sink(finite(named), self._number, time.time_ns() // 1_000_000)
            self._number += 1


def _gpu() -> list[object]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [GPUMonitor()]
    except Exception:  # no NVML, or no GPU of that make
        return []
