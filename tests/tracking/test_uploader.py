"""Every point of a curve reaches a run exactly once, despite server failures and truncated files."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detection.tracking.uploader import METRICS_PER_CALL, Uploader

Write = Callable[..., None]


class Client:
    """Client of an in-memory server: stores points, and fails after `calls` calls."""

    def __init__(self) -> None:
        self.points: list[Any] = []
        self.batches: list[int] = []
        self.calls = 1_000_000

    def get_run(self, run_id: str) -> Any:
        latest = {point.key: point for point in sorted(self.points, key=lambda point: int(point.step))}
        return SimpleNamespace(data=SimpleNamespace(_metric_objs=list(latest.values())))

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return [point for point in self.points if point.key == name]

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("no route to host")
        self.points += metrics
        self.batches.append(len(metrics))

    def steps(self, name: str) -> list[int]:
        return [point.step for point in self.points if point.key == name]


@pytest.fixture
def client() -> Client:
    return Client()


def upload(client: Client, reports: Path, until: int | None = None, **settings: Any) -> int:
    return sum(Uploader(client, "0" * 32, reports, **settings).send(until))


def test_every_point_is_sent_once_with_its_time(client: Client, tmp_path: Path, write_losses: Write) -> None:
    write_losses(tmp_path, 3)
    (tmp_path / "train/metrics.csv").write_text("epoch,step,time,AP,C#,train/rpn_recall\n1,3,9,0.5,,0.25\n")
    assert upload(client, tmp_path) == 3 * 4 + 3
    points = {(p.key, p.step): (p.value, p.timestamp) for p in client.points}
    assert points["loss", 2] == (1.5, 1_700_000_000_002)
    assert points["loss/boxes", 3] == (1 / 3, 1_700_000_000_003)
    assert points["lr", 1][0] == 0.01
    assert points["val/AP", 3] == (0.5, 9)
    assert points["train/rpn_recall", 3] == (0.25, 9)
    assert points["epoch", 3] == (1.0, 9)
    assert not any(name == "val/C_" for name, _ in points), "an empty cell is not a point"
    assert upload(client, tmp_path) == 0


@pytest.mark.parametrize("value", ["nan", "inf", ""])
def test_values_that_are_not_finite_are_skipped(client: Client, tmp_path: Path, value: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.csv").write_text(f"epoch,step,time,AP\n1,3,9,{value}\n")
    assert upload(client, tmp_path) == 1
    assert client.steps("epoch") == [3]


def test_without_files_nothing_is_sent(client: Client, tmp_path: Path) -> None:
    assert upload(client, tmp_path) == 0
    assert client.batches == []


def test_batches_have_the_size_that_mlflow_accepts(client: Client, tmp_path: Path, write_losses: Write) -> None:
    write_losses(tmp_path, 1000)
    assert upload(client, tmp_path) == 4000
    assert client.batches == [METRICS_PER_CALL] * 4
    assert client.steps("loss") == list(range(1, 1001))


def test_a_growing_file_is_read_on_from_its_last_complete_line(
    client: Client, tmp_path: Path, write_losses: Write
) -> None:
    uploader = Uploader(client, "0" * 32, tmp_path)
    file = tmp_path / "train/losses.csv"
    assert sum(uploader.send()) == 0
    write_losses(tmp_path, 5)
    whole = file.read_text()
    file.write_text(whole[:-4])  # the last line is being written
    sum(uploader.send())
    assert client.steps("loss") == [1, 2, 3, 4]
    file.write_text(whole)
    sum(uploader.send(until=2))
    assert client.steps("loss") == [1, 2, 3, 4, 5][:4]
    sum(uploader.send())
    assert client.steps("loss") == [1, 2, 3, 4, 5]


def test_steps_after_the_last_checkpoint_wait(client: Client, tmp_path: Path, write_losses: Write) -> None:
    write_losses(tmp_path, 9)
    uploader = Uploader(client, "0" * 32, tmp_path)
    sum(uploader.send(until=6))
    assert client.steps("loss") == [1, 2, 3, 4, 5, 6]
    sum(uploader.send(until=8))
    assert client.steps("loss") == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_new_column_rewrites_the_file_and_repeats_no_point(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "train/metrics.csv"
    file.parent.mkdir()
    file.write_text("epoch,step,time,AP\n1,3,9,0.5\n")
    uploader = Uploader(client, "0" * 32, tmp_path)
    sum(uploader.send())
    file.write_text("epoch,step,time,AP,AP50\n1,3,9,0.5,\n2,6,19,0.6,0.7\n")
    sum(uploader.send())
    assert client.steps("val/AP") == [3, 6]
    assert client.steps("val/AP50") == [6]


def test_steps_repeated_by_a_resumed_training_keep_their_first_time(
    client: Client, tmp_path: Path, write_losses: Write
) -> None:
    write_losses(tmp_path, 30)
    killed = Uploader(client, "0" * 32, tmp_path)
    sum(killed.send())
    write_losses(tmp_path, 20, start_ms=5_000)  # resumed from the checkpoint of step 20
    for uploader in (killed, Uploader(client, "0" * 32, tmp_path)):
        assert sum(uploader.send()) == 0
    write_losses(tmp_path, 40, start_ms=5_000)
    sum(killed.send())
    assert client.steps("loss") == list(range(1, 41))
    times = [point.timestamp for point in client.points if point.key == "loss"]
    assert (times[29], times[30]) == (1_700_000_000_030, 5_031)
    assert upload(client, tmp_path, fill_gaps=True) == 0


def test_a_server_that_dies_in_the_middle_gets_the_rest_later(
    client: Client, tmp_path: Path, write_losses: Write
) -> None:
    write_losses(tmp_path, 1000)
    client.calls = 2
    with pytest.raises(ConnectionError):
        upload(client, tmp_path)
    assert len(client.points) == 2 * METRICS_PER_CALL
    client.calls = 10
    assert upload(client, tmp_path) == 2 * METRICS_PER_CALL
    assert client.steps("loss") == list(range(1, 1001))


def test_gaps_before_the_last_step_are_filled_on_request(client: Client, tmp_path: Path, write_losses: Write) -> None:
    write_losses(tmp_path, 30)
    upload(client, tmp_path)
    client.points = [point for point in client.points if point.step not in range(11, 21)]
    assert upload(client, tmp_path) == 0
    assert upload(client, tmp_path, fill_gaps=True) == 40
    assert sorted(client.steps("loss")) == list(range(1, 31))
