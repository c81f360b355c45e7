import os
import shutil
import signal
from pathlib import Path

import pytest

from detection import signals
from detection.signals import (
    CHECKPOINT_INTERVAL_S,
    MIN_INTERVAL_PER_SAVE,
    CheckpointTimer,
    StopSignals,
    stop_with_workspace,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_the_first_step_is_saved_then_every_interval_and_less_often_on_a_slow_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(signals, "time", clock)
    timer = CheckpointTimer(7)
    assert not timer.due(7), "no step since the start"
    assert timer.due(8)
    with timer.saving(8):
        clock.now += 0.1
    clock.now += CHECKPOINT_INTERVAL_S - 1
    assert not timer.due(50)
    clock.now += 1
    assert timer.due(50)
    with timer.saving(50):
        clock.now += 10.0
    clock.now += 10 * MIN_INTERVAL_PER_SAVE - 1
    assert not timer.due(99), "saving takes at most 2 % of the time"
    clock.now += 1
    assert timer.due(99)
    assert not timer.due(50)


def test_a_closed_terminal_stops_a_training_unless_it_runs_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deleted_workspace_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc queue stop --kill` deletes it while the training lives."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)

    def write(delete: bool) -> None:
        with stop_with_workspace():
            if delete:
                shutil.rmtree(workspace)
            Path("reports/losses.csv").write_text("")

    with pytest.raises(FileNotFoundError):
        write(delete=False)
    with pytest.raises(SystemExit) as stop:
        write(delete=True)
    assert stop.value.code == 143
