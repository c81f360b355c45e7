"""CPU, memory, disk, network and GPU usage during a training, as curves `system/...` of its run."""

import time
from collections.abc import Mapping
from typing import Any

from detection.tracking.naming import finite
from detection.tracking.uploader import Point

SAMPLE_INTERVAL_S = 10.0
PREFIX = "system/"


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
        for sampler in self._samplers:
            sampler.collect_metrics()
            values |= {PREFIX + name: value for name, value in sampler.aggregate_metrics().items()}
            sampler.clear_metrics()
        now = time.time_ns() // 1_000_000
        return [(name, value, now, self._step) for name, value in finite(values).items()]


def _gpu() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [GPUMonitor()]
    except Exception:  # NVML or a GPU is missing
        return []
