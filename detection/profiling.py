"""How large a detector is, and how fast on this device.

What is timed starts with decoded, resized pictures in memory and ends with boxes on the host: the transfer,
the network and the postprocessing. Decoding is left out: it belongs to the machine, not to the detector.
"""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from detection.data.index import Index
from detection.data.loading.batch import Batch
from detection.data.loading.loader import DetectionDataset, Loader
from detection.device import autocast, pick_device, pick_precision
from detection.models.detector import Detector
from detection.params.recipe import Recipe
from detection.params.stages import Evaluate

SECONDS = 4.0
"""For the timed rounds of one measurement; there are two."""
ROUNDS = 30
"""At most; few detectors reach it on a CPU."""
MIB = 2**20


def measure(
    detector: Detector, index: Index, root: Path, recipe: Recipe, settings: Evaluate
) -> dict[str, Any]:
    """Measure on pictures of a split, evenly taken from it; about 15 seconds at most on two CPU cores.

    Args:
        detector: Moved to the device, and left in evaluation mode.
        index: The split; without pictures only the size is known.
        root: Folder that its files are relative to.
        recipe: Picture size.
        settings: Device and precision; the batch size for the throughput, which takes a smaller one where
            the time does not allow for such batches.

    Returns:
        * `device`, `threads` (of a CPU), `precision`, `torch`;
        * `cores` of the machine, and `others_busy`: how many of them other programs (or other tenants of the
          host) kept busy meanwhile, on average;
        * `parameters`, and `weights_mib` with buffers, as they lie in memory;
        * `picture`: height and width of the first picture as the network gets it, and `gflops` for it: two
          for each multiplication and addition of convolutions and matrix products, nothing for the rest;
        * `latency_ms` of one picture: `median`, `p95`, `rounds`;
        * `throughput`: `pictures_per_s` of the median round and of the `slowest`, `batch_size`, `rounds`;
        * `peak_mib`: of a GPU's memory while measuring; on a CPU of the whole process so far.
    """
    place = pick_device(settings.device)
    dtype = pick_precision(settings.precision, place)
    detector.to(place).eval()
    most = min(settings.batch_size, len(index))
    tensors = [*detector.parameters(), *detector.buffers()]
    report: dict[str, Any] = {
        **_where(place),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "parameters": sum(one.numel() for one in detector.parameters()),
        "weights_mib": sum(one.numel() * one.element_size() for one in tensors) / MIB,
    }
    if not len(index):
        return report
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)

    def detect(batch: Batch) -> None:
        with torch.inference_mode(), autocast(place, dtype):
            for found in detector.detect(batch.images.to(place, non_blocking=True), batch.sizes):
                found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()

    singles = _batches(index, root, recipe, most, 1)
    with FlopCounterMode(display=False) as counter:
        detect(singles[0])
    busy, began = _others(), time.monotonic()
    latency = _time(lambda round: detect(singles[round % len(singles)]))
    median = statistics.median(latency)
    together = max(1, min(most, int(SECONDS / 2 / median)))
    (batch,) = _batches(index, root, recipe, together, together)
    seconds = _time(lambda round: detect(batch))
    return report | {
        "cores": psutil.cpu_count(),
        "others_busy": max(0.0, _others() - busy) / (time.monotonic() - began),
        "picture": list(singles[0].images.shape[2:]),
        "gflops": counter.get_total_flops() / 1e9,
        "latency_ms": {
            "median": median * 1e3,
            "p95": float(np.quantile(latency, 0.95)) * 1e3,
            "rounds": len(latency),
        },
        "throughput": {
            "pictures_per_s": together / statistics.median(seconds),
            "slowest": together / max(seconds),
            "batch_size": together,
            "rounds": len(seconds),
        },
        "peak_mib": _peak(place) / MIB,
    }


def flat(report: dict[str, Any]) -> dict[str, float]:
    """The numbers of a report by the names that a row shows: `speed/latency_ms/median`, `speed/gflops`."""
    numbers: dict[str, float] = {}
    for name, value in report.items():
        for key, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, int | float):
                numbers["/".join(filter(None, ("speed", name, key)))] = float(number)
    return numbers


def _time(work: Callable[[int], None]) -> list[float]:
    """Seconds of each round: one to warm up, not counted, then until `SECONDS` or `ROUNDS` are over."""
    work(0)
    took: list[float] = []
    while not took or (sum(took) < SECONDS and len(took) < ROUNDS):
        began = time.perf_counter()
        work(len(took))
        took.append(time.perf_counter() - began)
    return took


def _others() -> float:
    """CPU seconds that this machine has spent on all but this process and idling."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    counted_elsewhere = {"idle", "iowait", "guest", "guest_nice"}  # a guest's time is in the user's too
    busy = sum(seconds for name, seconds in machine._asdict().items() if name not in counted_elsewhere)
    return float(busy - own.user - own.system)


def _batches(index: Index, root: Path, recipe: Recipe, count: int, batch_size: int) -> list[Batch]:
    rows = np.linspace(0, len(index) - 1, count).astype(np.int64)
    pictures = DetectionDataset(index.select(rows), root, recipe, train=False)
    return list(Loader(pictures, batch_size, 0, False).epoch(0))


def _where(place: torch.device) -> dict[str, Any]:
    if place.type == "cuda":
        return {"device": torch.cuda.get_device_name(place)}
    return {"device": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """The CPU's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _peak(place: torch.device) -> float:
    """Bytes."""
    if place.type == "cuda":
        return float(torch.cuda.max_memory_allocated(place))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)  # kilobytes but on a Mac
