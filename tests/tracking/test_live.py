"""The background thread: few calls, nothing lost, nothing waited for."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detection.tracking import live
from detection.tracking.live import MlflowRun, OpenRun
from detection.tracking.run import NoRun, Run
from detection.tracking.store import Store, import_mlflow


class Client:
    """Stands in for MLflow's client: counts calls, and fails while `away`."""

    def __init__(self) -> None:
        self.away = False
        self.batches: list[list[Any]] = []
        self.files: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.status = "RUNNING"

    def _answer(self) -> None:
        if self.away:
            raise ConnectionError("no route to host\nsecond line")

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self._answer()
        self.batches.append(metrics)

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        self._answer()
        self.files[f"{folder}/{Path(path).name}"] = Path(path).read_text()

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._answer()
        self.tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self._answer()
        self.status = status

    @property
    def steps(self) -> list[int]:
        return [metric.step for batch in self.batches for metric in batch]


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def row(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowRun]:
    import_mlflow()  # takes seconds, once; a row that is given two of them would be declared incomplete
    monkeypatch.setattr(live, "SystemMetrics", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(live, "RETRY_S", (0.02,))
    monkeypatch.setattr(live, "CLOSE_S", 2.0)
    row = MlflowRun(lambda: opened(client), opened(client))
    yield row
    row.close("FINISHED")


def opened(client: Any, uri: str = "http://away", **latest: int) -> OpenRun:
    return OpenRun(Store(client, "1", uri), "0" * 32, latest)


def wait_for(what: Any) -> None:
    until = time.monotonic() + 5
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_at_most_one_call_per_twenty_steps(row: MlflowRun, client: Client) -> None:
    for step in range(1, 101):
        row.log(step, {"loss": 1.0, "lr": 0.1}, step)
        time.sleep(0.001)
    row.close("FINISHED")
    assert client.steps == [step for step in range(1, 101) for _ in "ab"]
    assert len(client.batches) <= 5
    assert client.status == "FINISHED"


def test_flush_sends_what_is_pending(row: MlflowRun, client: Client) -> None:
    row.log(1, {"loss": 1.0}, 1)
    row.tag("a", "b")
    row.flush()
    assert client.steps == [1]
    assert client.tags == {"a": "b"}


def test_large_batches_are_cut_to_what_mlflow_takes(row: MlflowRun, client: Client) -> None:
    client.away = True
    for step in range(1, 2102):
        row.log(step, {"loss": 1.0}, step)
    client.away = False
    row.close("FINISHED")
    assert client.steps == list(range(1, 2102))
    assert max(map(len, client.batches)) <= 1000


def test_a_store_that_goes_away_and_comes_back_misses_nothing(
    row: MlflowRun, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client.away = True
    for step in range(1, 61):
        row.log(step, {"loss": 1.0}, step)
    file = tmp_path / "figure.txt"
    file.write_text("drawn")
    row.artifact(file, "samples")
    file.unlink()
    wait_for(lambda: caplog.messages)
    time.sleep(0.1)
    client.away = False
    wait_for(lambda: client.files)
    row.flush()
    assert client.steps == list(range(1, 61))
    assert client.files == {"samples/figure.txt": "drawn"}
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "no route to host" in warnings[0].message
    assert "second line" not in warnings[0].message
    assert "is back" in caplog.messages[-1]


def test_nothing_waits_for_a_store_that_is_away(row: MlflowRun, client: Client) -> None:
    client.away = True
    started = time.monotonic()
    for step in range(1, 1001):
        row.log(step, {"loss": 1.0, "lr": 0.1}, step)
    wait_for(lambda: row._failures)
    row.flush()
    assert time.monotonic() - started < 1
    row.close("FINISHED")
    assert time.monotonic() - started < 3


def test_a_real_client_without_a_server_holds_nothing_up(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "CLOSE_S", 8.0)
    uri = f"http://127.0.0.1:{closed_port}"
    there = opened(import_mlflow().MlflowClient(tracking_uri=uri), uri)
    row = MlflowRun(lambda: there, there)
    started = time.monotonic()
    for step in range(1, 201):
        row.log(step, {"loss": 1.0}, step)
    assert time.monotonic() - started < 0.5
    row.close("KILLED")
    assert time.monotonic() - started < 10
    for thread in threading.enumerate():  # ends by itself once its last call has failed
        if thread.name in ("tracking", "machine"):
            thread.join(30)


def test_a_store_that_comes_late_gets_everything(
    client: Client, monkeypatch: pytest.MonkeyPatch, row: MlflowRun
) -> None:
    calls = []

    def opening() -> OpenRun:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return opened(client)

    late = MlflowRun(opening, None)
    assert late.id is None
    for step in range(1, 31):
        late.log(step, {"loss": 1.0}, step)
    wait_for(lambda: late.id)
    late.close("FINISHED")
    assert client.steps == list(range(1, 31))
    assert client.status == "FINISHED"


def test_what_the_row_has_is_not_sent_again(client: Client, row: MlflowRun) -> None:
    resumed = MlflowRun(lambda: pytest.fail("it is open"), opened(client, loss=7))
    for step in range(1, 11):
        resumed.log(step, {"loss": 1.0, "lr": 0.1}, step)
    resumed.close("FINISHED")
    sent = [(metric.key, metric.step) for batch in client.batches for metric in batch]
    assert [step for name, step in sent if name == "loss"] == [8, 9, 10]
    assert [step for name, step in sent if name == "lr"] == list(range(1, 11))


def test_a_second_close_changes_nothing(row: MlflowRun, client: Client) -> None:
    row.close("KILLED")
    row.close("FINISHED")
    assert client.status == "KILLED"


def test_every_row_keeps_the_protocol(row: MlflowRun) -> None:
    assert isinstance(row, Run)
    assert isinstance(NoRun(), Run)
    with NoRun() as nothing:
        nothing.log(1, {"loss": 1.0}, 1)
        nothing.artifact(Path("nowhere"), "x")
        nothing.tag("a", "b")
        nothing.flush()
        assert nothing.id is None


def test_a_missing_file_costs_a_warning(row: MlflowRun, caplog: pytest.LogCaptureFixture) -> None:
    row.artifact(Path("/nowhere/figure.png"), "samples")
    assert "/nowhere/figure.png" in caplog.messages[0]
