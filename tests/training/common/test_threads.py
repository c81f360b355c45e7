"""`train.threads`: all threads, or one beside other programs."""

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from detection.params import Train
from detection.signals import StopSignals
from detection.tracking.run import NoRun
from detection.training.common import threads
from detection.training.common.checkpoint import STATE_FILE, Checkpoints
from detection.training.common.threads import THREADS_FILE, faster_threads, settle_threads
from detection.training.loop import fit, step_on_a_copy

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def step(one: float, every: float) -> None:
    """Take some milliseconds, by the number of threads."""
    time.sleep((one if torch.get_num_threads() == 1 else every) / 1e3)


@pytest.mark.parametrize(
    ("one", "every", "selected"),
    [(20, 10, 2), (10, 100, 1), (10, 10, 2), (10, 22, 1)],
    ids=["quiet", "busy", "equal", "half-busy"],
)
def test_one_thread_must_be_clearly_faster(
    one: float, every: float, selected: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert faster_threads(partial(step, one, every), 2) == selected
    (record,) = caplog.records
    assert record.getMessage().startswith(f"threads: {selected}, since a step takes")


@pytest.fixture
def checkpoints(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoints]:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Checkpoints("train", "key").locked() as one:
        yield one


def test_the_choice_is_recorded_and_kept_on_resume(checkpoints: Checkpoints) -> None:
    def settle(one: float, every: float, **settings: Any) -> int:
        torch.set_num_threads(2)
        settle_threads(Train(**settings), CPU, 1000, checkpoints, lambda: partial(step, one, every))
        return torch.get_num_threads()

    assert settle(1, 30, determinism="bitwise") == 1
    assert (checkpoints.folder / THREADS_FILE).read_text() == "1"
    assert settle(30, 1, determinism="bitwise") == 1
    assert settle(30, 1) == 1
    assert settle(30, 1, determinism="fast") == 2
    assert settle(1, 30) == 2
    assert settle(1, 30, threads=1) == 1
    assert (checkpoints.folder / THREADS_FILE).read_text() == "2"


def test_nothing_is_measured_without_a_choice(checkpoints: Checkpoints) -> None:
    def settle(steps: int = 1000, device: torch.device = CPU) -> None:
        settle_threads(Train(), device, steps, checkpoints, lambda: pytest.fail("measured"))

    settle(steps=threads.MIN_STEPS - 1)
    settle(device=torch.device("cuda"))
    torch.set_num_threads(1)
    settle()
    torch.set_num_threads(2)
    checkpoints.mark_complete()
    settle()
    assert torch.get_num_threads() == 2


def test_measuring_does_not_change_the_weights(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread all the time, since two take minutes beside other programs."""
    torch.set_num_threads(1)
    monkeypatch.setattr(threads, "MIN_STEPS", 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    weights = []
    for name in ("plain", "measured"):
        job = make_job(name, validate_every=100)
        with job.checkpoints.locked():
            if name == "measured":
                settle_threads(job.settings, CPU, job.steps(), job.checkpoints, partial(step_on_a_copy, job))
                assert (job.checkpoints.folder / THREADS_FILE).exists()
            fit(job, NoRun(), StopSignals())
            weights.append(job.checkpoints.load(STATE_FILE))
    assert weights[0]["rng"][0].equal(weights[1]["rng"][0])
    assert all(value.equal(weights[1]["model"][key]) for key, value in weights[0]["model"].items())
