"""Number of CPU threads of a training: all of them, or one beside other programs (`train.threads: auto`).

OpenMP's threads wait for each other several hundred times a step. Where another program takes one of the cores, a step
on all threads takes 15 to 20 times as long as alone, not twice; on one thread it takes no longer than that alone.
"""

import logging
import time
from collections.abc import Callable

import torch

from detection import distributed
from detection.params.stages import Train
from detection.training.common.checkpoint import Checkpoints

log = logging.getLogger(__name__)
THREADS_FILE = "threads"
"""File in the checkpoint folder: the number that this training began with."""
MIN_STEPS = 40
"""A shorter training takes all threads without a measurement."""
MIN_GAIN = 1.25
"""Factor by which one thread must be faster. It makes the choice, and so the last bits of the weights, the same every
time on a machine without other programs: there all threads are faster, or one is by less."""
CLEAR_GAIN = 1.5
"""Factor from which the first of two rounds decides."""


def settle_threads(
    settings: Train,
    device: torch.device,
    steps: int,
    checkpoints: Checkpoints,
    make_step: Callable[[], Callable[[], object]],
) -> None:
    """Choose the number of threads of a training on the CPU, and record it in its checkpoint.

    A resumed training keeps the number, so that its weights equal those of the uninterrupted one to the last bit;
    with `determinism: fast` it measures again.

    Args:
        settings: Section `train`; a number in `threads` is used as it is.
        device: Device of the training; other than on a CPU nothing is done.
        steps: Length of the training.
        checkpoints: Checkpoints, locked by the caller.
        make_step: Makes a training step on a copy of the model; called only to measure.
    """
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
        return
    threads = torch.get_num_threads()
    if device.type != "cpu" or distributed.world_size() > 1 or threads == 1 or checkpoints.complete:
        return
    record = checkpoints.folder / THREADS_FILE
    recorded = record.read_text(encoding="utf-8") if record.exists() else ""
    if recorded.isdigit() and settings.determinism != "fast":
        torch.set_num_threads(int(recorded))
        log.info("threads: %s, as at the start of this training", recorded)
    elif steps >= MIN_STEPS:
        with torch.random.fork_rng(devices=[]):
            selected = faster_threads(make_step(), threads)
        torch.set_num_threads(selected)
        record.write_text(str(selected), encoding="utf-8")


def faster_threads(step: Callable[[], object], threads: int) -> int:
    """Measure steps on all threads and on one, and return the number that is faster; log both times.

    Args:
        step: A training step.
        threads: Number of all threads, at least 2.
    """
    _seconds(step, 1)  # the first step at each number makes buffers and kernels
    _seconds(step, threads)
    one, every = _seconds(step, 1), _seconds(step, threads)
    if 1 / CLEAR_GAIN < every / one < CLEAR_GAIN:
        one, every = min(one, _seconds(step, 1)), min(every, _seconds(step, threads))
    selected = 1 if every > MIN_GAIN * one else threads
    times = one * 1e3, every * 1e3, threads
    log.info("threads: %d, since a step takes %.0f ms on one and %.0f ms on %d", selected, *times)
    return selected


def _seconds(step: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
