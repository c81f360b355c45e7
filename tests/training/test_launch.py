"""The launcher as DVC starts it: real processes that are killed, asked to stop, or fail."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import time
import torch
from detection import distributed
from detection.training import launch
from detection.training.signals import StopSignals
from stages.entry import run

def work():
    checkpoints = launch.checkpoints("train", "key")
    with checkpoints.held(), StopSignals() as interrupts:
        start = (checkpoints.load("state.pt") or {"step": 0})["step"]
        checkpoints.save("state.pt", {"step": start + 1})
        print("step", start + 1, "of", distributed.world_size(), flush=True)
        for _ in range(3000):
            (asked,) = distributed.maximum(interrupts.signal or 0)
            if asked:
                print("saved", flush=True)
                raise SystemExit(128 + asked)
            time.sleep(0.02)

def main():
    launch.run(2, "work", torch.device("cpu"), work)

if __name__ == "__main__":
    run(main)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the launcher as a stage is started; whatever is left of it at the end is killed."""
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
    """Whether none of these processes is left, after a moment's grace."""
    until = time.monotonic() + 20
    while (left := any(Path(f"/proc/{number}").exists() for number in numbers)) and time.monotonic() < until:
        time.sleep(0.1)
    return not left


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_killed_process_ends_the_run_with_its_reason_and_the_next_goes_on(
    start: Start, tmp_path: Path
) -> None:
    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "step 1 of 2\n"
    ranks = children(first)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    out, err = first.communicate(timeout=120)
    assert (first.returncode, out) == (1, "")
    assert err == (
        "error: process 1 of 2 was ended by SIGKILL (was memory short?); the last checkpoint is kept, "
        "and the same command goes on from there\n"
    )
    assert gone(ranks)
    assert (tmp_path / ".checkpoints/train/key/state.pt").is_file()

    second = start()
    assert second.stdout is not None
    assert second.stdout.readline() == "step 2 of 2\n"
    ranks = children(second)
    second.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGTERM)  # twice is as good as once
    out, err = second.communicate(timeout=120)
    assert (second.returncode, out, err) == (143, "saved\n", "")
    assert gone(ranks)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ranks_end_with_a_launcher_that_is_killed(start: Start) -> None:
    launcher = start()
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "step 1 of 2\n"
    ranks = children(launcher)
    launcher.kill()
    assert launcher.stdout.readline() == "saved\n", "each rank is told by the system that its parent died"
    assert gone(ranks)
