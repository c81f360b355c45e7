"""The launcher as DVC starts it: real processes that are killed, stopped, or fail."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection.errors import DetectionError
from detection.training.common import launch

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import time
import torch
from detection import distributed
from detection.training.common import launch
from detection.training.common.checkpoint import Checkpoints
from detection.training.common.signals import StopSignals
from stages.entry import run

def work():
    checkpoints = Checkpoints("train", "key")
    with checkpoints.locked(), StopSignals() as stop:
        start = (checkpoints.load("state.pt") or {"step": 0})["step"]
        checkpoints.save("state.pt", {"step": start + 1})
        print("step", start + 1, "of", distributed.world_size(), flush=True)
        for _ in range(3000):
            (stop_requested,) = distributed.maximum(stop.signal or 0)
            if stop_requested:
                print("saved", flush=True)
                raise SystemExit(128 + stop_requested)
            time.sleep(0.02)

def main():
    launch.run(2, "work", torch.device("cpu"), work)

if __name__ == "__main__":
    run(main)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the launcher as a stage is started; remaining processes are killed at the end."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "work.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "DVC_ROOT": str(tmp_path)}

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "work"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in listed.split()]


def gone(numbers: list[int]) -> bool:
    """Wait a while for all of these processes to end."""
    until = time.monotonic() + 20
    while (left := any(Path(f"/proc/{number}").exists() for number in numbers)) and time.monotonic() < until:
        time.sleep(0.1)
    return not left


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_rank_ends_the_run_with_one_line_and_the_next_run_resumes(start: Start, tmp_path: Path) -> None:
    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "step 1 of 2\n"
    ranks = children(first)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    out, err = first.communicate(timeout=120)
    assert (first.returncode, out) == (1, "")
    assert err.startswith("error: process 1 of 2 was killed by SIGKILL")
    assert err.count("\n") == 1
    assert gone(ranks)
    assert (tmp_path / ".checkpoints/train/key/state.pt").is_file()

    second = start()
    assert second.stdout is not None
    assert second.stdout.readline() == "step 2 of 2\n"
    ranks = children(second)
    second.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGTERM)  # a second signal changes nothing
    out, err = second.communicate(timeout=120)
    assert (second.returncode, out, err) == (143, "saved\n", "")
    assert gone(ranks)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ranks_end_with_a_launcher_that_is_killed(start: Start) -> None:
    launcher = start()
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "step 1 of 2\n"
    ranks = children(launcher)
    launcher.kill()
    assert launcher.stdout.readline() == "saved\n", "each rank gets a SIGTERM when its parent dies"
    assert gone(ranks)


class Failure:
    """Failure of a rank in torchrun's form."""

    def __init__(self, rank: int, exitcode: int, timestamp: int, text: str = "", user_error: bool = False) -> None:
        self.local_rank, self.exitcode, self.timestamp = rank, exitcode, timestamp
        message = {"message": text, "extraInfo": {"user_error": user_error}}
        self.message: Any = message if text else "Signal"


def test_the_first_failure_is_reported_and_not_those_it_causes() -> None:
    follow_up = Failure(0, 1, 100, "Connection closed by peer")

    def first(*failures: Failure) -> BaseException:
        return launch._first_failure({one.local_rank: one for one in failures}, 2)

    killed = first(follow_up, Failure(1, -9, 101))
    assert isinstance(killed, DetectionError)
    assert str(killed).startswith("process 1 of 2 was killed by SIGKILL")
    known = first(follow_up, Failure(1, 1, 100, "a.jpg cannot be read", user_error=True))
    assert (type(known), str(known)) == (DetectionError, "a.jpg cannot be read")
    bug = first(Failure(0, 1, 100, "IndexError"), Failure(1, -9, 130))  # ended by the launcher, 30 s later
    assert isinstance(bug, RuntimeError)
    assert "process 0 of 2 failed:\nIndexError" in str(bug)
    stopped = first(Failure(0, 143, 100), Failure(1, 143, 100))
    assert isinstance(stopped, SystemExit)
    assert stopped.code == 143
