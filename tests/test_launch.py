"""The launcher as DVC starts it: real processes that are killed, stopped, or fail."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detection import launch, process_group
from detection.errors import DetectionError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import time
import torch
from detection import distributed
from detection import launch, process_group
from detection.training.common.checkpoint import Checkpoints
from detection.signals import StopSignals
from stages.entry import run

def work():
    process_group.join(torch.device("cpu"))
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


def test_tasks_of_srun_train_together(tmp_path: Path) -> None:
    """Without torchrun: two processes that know their place from SLURM's variables, each with a disk of its own."""
    (tmp_path / "work.py").write_text(SCRIPT.replace("range(3000)", "range(3)"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port)}
    slurm |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}
    for step in (1, 2):
        tasks = []
        for rank in (0, 1):
            own = {"SLURM_PROCID": str(rank), "DVC_ROOT": str(tmp_path / f"machine_{rank}")}
            command = [sys.executable, "-m", "work"]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            tasks.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | slurm | own, **pipes))
        outputs = [task.communicate(timeout=300) for task in tasks]
        assert [task.returncode for task in tasks] == [0, 0], outputs
        assert outputs[0][0] == f"step {step} of 2\n"
        assert not (tmp_path / "machine_1").exists(), "rank 0 alone reads and writes"


def test_the_place_among_the_processes() -> None:
    def place(**variables: str) -> Any:
        rank = launch.Rank.from_environment(variables)
        return rank and (rank.rank, rank.ranks, rank.local_rank, rank.local_ranks, *rank.rendezvous.values())

    master = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert place() is None
    assert place(RANK="0", WORLD_SIZE="1", **master) is None
    assert place(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2", **master) == (3, 4, 1, 2, "a", "1")
    assert place(TORCHELASTIC_RUN_ID="x", RANK="0", WORLD_SIZE="1", **master) == (0, 1, 0, 1, "a", "1")
    with pytest.raises(DetectionError, match="MASTER_ADDR is not set"):
        place(RANK="3", WORLD_SIZE="4", MASTER_PORT="1")
    task = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "123456"}
    task |= {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert place(**task) == (2, 4, 0, 2, "gpu07", "23456")
    assert place(**task, MASTER_ADDR="b") == (2, 4, 0, 2, "b", "23456")
    assert place(SLURM_NTASKS="4", SLURM_PROCID="0") is None, "a batch script, which starts other processes"
    assert launch._first_host("login1") == "login1"


def test_a_timeout_is_one_line() -> None:
    error = process_group._timeout_error(
        RuntimeError("[gloo] Timed out waiting 900000ms for recv operation to complete")
    )
    assert error is not None
    assert "waited 15 minutes" in str(error)
    assert "\n" not in str(error)
    assert process_group._timeout_error(RuntimeError("Connection closed by peer")) is None
    assert process_group._timeout_error(ValueError("timed out")) is None


class Failure:
    """Failure of a rank in torchrun's form."""

    def __init__(self, rank: int, exitcode: int, timestamp: int, text: str = "", user_error: bool = False) -> None:
        self.local_rank, self.exitcode, self.timestamp = rank, exitcode, timestamp
        message = {"message": text, "extraInfo": {"user_error": user_error, "cause": user_error}}
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
