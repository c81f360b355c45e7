import pytest

from detection.training import state
from detection.training.state import PAUSE_S, PAUSES, CheckpointTimer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_the_first_step_is_saved_then_rarely_and_slow_disks_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(state, "time", clock)
    when = CheckpointTimer(7)
    assert not when.due(7), "nothing is new"
    assert when.due(8)
    with when.saving(8):
        clock.now += 0.1
    clock.now += PAUSE_S - 1
    assert not when.due(50)
    clock.now += 1
    assert when.due(50)
    with when.saving(50):
        clock.now += 10.0
    clock.now += 10 * PAUSES - 1
    assert not when.due(99), "saving takes no more than a fiftieth of the time"
    clock.now += 1
    assert when.due(99)
    assert not when.due(50)
