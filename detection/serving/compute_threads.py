"""Threads that compute with torch, without thread pools of OpenMP beside that of the detector.

OpenMP keeps a pool of workers for each thread that ever ran a parallel operation. As soon as all pools together have
more workers than there are cores, GNU's OpenMP puts workers to sleep at the end of each operation instead of letting
them wait for the next: on two cores the detector then reached 28 images per second instead of 45.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
SWITCH_INTERVAL_S = 0.0002
"""Interval at which Python's threads take turns. With the default of 5 ms the detector may wait longer for the
interpreter than OpenMP's workers wait for the next operation (3 ms) before they sleep."""


def in_ending_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, whose pool ends with it; errors are raised here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def single_threaded_pool(size: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose threads run torch's operations without workers.

    Args:
        size: Number of threads.
        name: Prefix of the threads' names.
    """
    threads, lock = torch.get_num_threads(), threading.Lock()

    def start() -> None:
        with lock:
            torch.get_num_threads()  # torch sets the number once per thread, before it is first read
            torch.set_num_threads(1)
            # the number is the thread's in OpenMP, but the process's in MKL
            in_ending_thread(lambda: torch.set_num_threads(threads))

    return ThreadPoolExecutor(size, name, initializer=start)
