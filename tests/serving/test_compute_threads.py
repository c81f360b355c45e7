"""Threads of OpenMP that decoding and loading leave behind."""

import os
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from detection.serving.compute_threads import in_ending_thread, single_threaded_pool

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def compute() -> int:
    """Run a parallel operation; return the number of threads that torch may use for it."""
    torch.zeros(3, 1000, 1000).permute(1, 2, 0).contiguous()
    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_decoders_have_no_workers_and_other_threads_keep_theirs() -> None:
    with single_threaded_pool(2, "decoder") as pool:
        pool.submit(compute).result()
        started = threads()
        assert [pool.submit(compute).result() for _ in range(8)] == [1] * 8
        assert threads() <= started + 1  # the pool's second thread, and no worker
    assert in_ending_thread(compute) == 2
    assert torch.get_num_threads() == 2


def test_a_thread_that_ends_leaves_no_workers() -> None:
    count = threads()
    assert in_ending_thread(compute) == 2
    deadline = time.monotonic() + 10  # the system ends them a moment later
    while threads() > count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == count
    with pytest.raises(ZeroDivisionError):
        in_ending_thread(lambda: 1 // 0)
