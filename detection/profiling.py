"""Size of a detector, and its speed on this device.

A timed round starts with resized images in memory and ends with boxes on the host: transfer, network and
postprocessing. Decoding is not timed, because it depends on the machine's disk and CPU, not on the detector.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from detection.data.loading.batch import Batch
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader
from detection.device import autocast, device_name, exact_float32, pick_device, pick_precision
from detection.models.detector import Detector
from detection.params.recipe import Recipe
from detection.params.stages import Evaluate

MEASURED_S = 4.0
"""Time of the timed rounds of one measurement; latency and throughput are one each."""
MAX_ROUNDS = 30
"""Limit on timed rounds; on a CPU few detectors reach it."""
MIB = 2**20


def measure(detector: Detector, index: Index, root: Path, recipe: Recipe, settings: Evaluate) -> dict[str, Any]:
    """Measure on evenly spaced images of a split; takes about 15 seconds at most on two CPU cores.

    Args:
        detector: Detector; moved to the device and left in evaluation mode.
        index: The split; if it is empty, only the size is measured.
        root: Folder that the index's files are relative to.
        recipe: Recipe, for the image size.
        settings: Device, precision and batch size. A slow detector gets a smaller batch, to fit the time.

    Returns:
        * `device`, `threads` (CPU only), `precision`, `torch`;
        * `parameters`, and `weights_mib`, the memory of parameters and buffers;
        * `image_size`: height and width of the first image as the network gets it, and `gflops` for it: two
          per multiply-add of convolutions and matrix products, other operations not counted;
        * `latency_ms` of one image: `median`, `p95`, `rounds`;
        * `throughput`: `images_per_s` of the median round and of the `slowest`, `batch_size`, `rounds`;
        * `peak_mib`: peak GPU memory while measuring, or peak memory of the process on a CPU.
    """
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    report = _size(detector.to(device).eval(), device, precision)
    if not len(index):
        return report

    def detect(batch: Batch) -> None:
        with torch.inference_mode(), exact_float32(device), autocast(device, precision):
            for one in detector.detect(batch.images.to(device, non_blocking=True), batch.sizes):
                one.boxes.cpu(), one.scores.cpu(), one.labels.cpu()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    max_batch = min(settings.batch_size, len(index))
    singles = _batches(index, root, recipe, max_batch, 1)
    with FlopCounterMode(display=False) as counter:
        detect(singles[0])
    latency = _time(lambda round: detect(singles[round % len(singles)]))
    batch_size = max(1, min(max_batch, int(MEASURED_S / 2 / statistics.median(latency))))
    (batch,) = _batches(index, root, recipe, batch_size, batch_size)
    seconds = _time(lambda round: detect(batch))
    return report | {
        "image_size": list(singles[0].images.shape[2:]),
        "gflops": counter.get_total_flops() / 1e9,
        "latency_ms": {
            "median": statistics.median(latency) * 1e3,
            "p95": float(np.quantile(latency, 0.95)) * 1e3,
            "rounds": len(latency),
        },
        "throughput": {
            "images_per_s": batch_size / statistics.median(seconds),
            "slowest": batch_size / max(seconds),
            "batch_size": batch_size,
            "rounds": len(seconds),
        },
        "peak_mib": _peak_bytes(device) / MIB,
    }


def _size(detector: Detector, device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    tensors = [*detector.parameters(), *detector.buffers()]
    return {
        "device": device_name(device),
        **({"threads": torch.get_num_threads()} if device.type == "cpu" else {}),
        "precision": str(precision).removeprefix("torch."),
        "torch": torch.__version__,
        "parameters": sum(tensor.numel() for tensor in detector.parameters()),
        "weights_mib": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB,
    }


def metrics(report: dict[str, Any]) -> dict[str, float]:
    """Return a report's numbers by their MLflow names, such as `speed/latency_ms/median`."""
    values: dict[str, float] = {}
    for name, entry in report.items():
        for key, value in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if isinstance(value, int | float):
                values["/".join(filter(None, ("speed", name, key)))] = float(value)
    return values


def _time(work: Callable[[int], None]) -> list[float]:
    """Return the seconds of each round, after one round of warm-up."""
    work(0)
    seconds: list[float] = []
    while not seconds or (sum(seconds) < MEASURED_S and len(seconds) < MAX_ROUNDS):
        started = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - started)
    return seconds


def _batches(index: Index, root: Path, recipe: Recipe, count: int, batch_size: int) -> list[Batch]:
    rows = np.linspace(0, len(index) - 1, count).astype(np.int64)
    dataset = DetectionDataset(index.select(rows), root, recipe, train=False)
    return list(Loader(dataset, batch_size, 0, shuffle=False).epoch(0))


def _peak_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)  # macOS gives bytes, others KiB
