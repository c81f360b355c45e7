import pytest

from detection.training.common import signals
from detection.training.common.signals import CHECKPOINT_INTERVAL_S, MIN_INTERVAL_PER_SAVE, CheckpointTimer


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
