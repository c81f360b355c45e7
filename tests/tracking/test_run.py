"""The background thread: few calls, nothing lost, and the training never waits."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detection.tracking import run as run_module
from detection.tracking.artifacts import Progress
from detection.tracking.run import MlflowRun, NoRun, OpenRun, SystemMetrics
from detection.tracking.store import import_mlflow

RUN_ID = "0" * 32
Write = Callable[..., None]


class Client:
    """In place of MLflow's client: records what it gets, and fails while `down`."""

    def __init__(self) -> None:
        self.down = False
        self.hangs = threading.Event()
        self.hangs.set()
        self.batches: list[list[Any]] = []
        self.files: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.status = "RUNNING"
        self.deleted: set[str] = set()

    def answer(self) -> None:
        assert self.hangs.wait(20)
        if self.down:
            raise ConnectionError("no route to host\nsecond line")

    def get_run(self, run_id: str) -> Any:
        self.answer()
        latest = {metric.key: metric for batch in self.batches for metric in batch}
        info = SimpleNamespace(artifact_uri="", lifecycle_stage="deleted" if run_id in self.deleted else "active")
        return SimpleNamespace(info=info, data=SimpleNamespace(_metric_objs=list(latest.values())))

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.answer()
        self.batches.append(metrics)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.answer()
        self.tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.answer()
        self.status = status

    def steps(self, name: str = "loss") -> list[int]:
        return [metric.step for batch in list(self.batches) for metric in batch if metric.key == name]


class FakeArtifacts:
    """In place of `Artifacts`: keeps files in the client."""

    def __init__(self, client: Client, uri: str, progress: Progress) -> None:
        self._client = client

    def send(self, path: Path, folder: str) -> None:
        self._client.answer()
        self._client.files[f"{folder}/{path.name}"] = path.read_text()


class NoSystemMetrics:
    def __init__(self, latest: Any) -> None:
        pass

    def sample(self) -> list[Any]:
        return []


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    import_mlflow()  # takes seconds, longer than the time-outs below
    monkeypatch.setattr(run_module, "SystemMetrics", NoSystemMetrics)
    monkeypatch.setattr(run_module, "Artifacts", FakeArtifacts)
    monkeypatch.setattr(run_module, "RETRY_INTERVALS_S", (0.02,))
    monkeypatch.setattr(run_module, "CLOSE_TIMEOUT_S", 2.0)
    return Client()


@pytest.fixture
def run(client: Client, tmp_path: Path) -> Iterator[MlflowRun]:
    run = MlflowRun(lambda: pytest.fail("it is open"), (client, RUN_ID), tmp_path)
    yield run
    run.close("FINISHED")


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_each_update_is_one_call(run: MlflowRun, client: Client, tmp_path: Path, write_losses: Write) -> None:
    for step in (20, 40, 60):
        write_losses(tmp_path, step + 7)
        run.update(step)
        wait_for(partial(lambda at: client.steps() == list(range(1, at + 1)), step))
    assert len(client.batches) <= 3
    run.close("FINISHED")
    assert client.steps() == list(range(1, 68)), "at the end also steps that no checkpoint holds"
    assert client.status == "FINISHED"


def test_files_of_another_training_are_not_sent(client: Client, tmp_path: Path, write_losses: Write) -> None:
    write_losses(tmp_path, 10)
    run = MlflowRun(lambda: pytest.fail("it is open"), (client, RUN_ID), tmp_path)
    run.close("FAILED")  # before the training wrote anything
    assert client.steps() == []
    assert client.status == "FAILED"


def test_a_server_that_dies_and_comes_back_misses_nothing(
    run: MlflowRun, client: Client, tmp_path: Path, write_losses: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_losses(tmp_path, 60)
    run.update(30)
    wait_for(lambda: len(client.steps()) == 30)
    client.down = True
    run.update(60)
    file = tmp_path / "figure.txt"
    file.write_text("drawn")
    run.artifact(file, "samples")
    file.unlink()
    run.tag("a", "b")
    wait_for(lambda: run._failures > 2)
    client.down = False
    wait_for(lambda: client.tags and client.files)
    assert client.steps() == list(range(1, 61))
    assert client.files == {"samples/figure.txt": "drawn"}
    wait_for(lambda: "is back" in caplog.messages[-1])
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "no route to host" in warning
    assert "second line" not in warning


def test_a_server_that_hangs_or_is_down_delays_nothing(
    run: MlflowRun, client: Client, tmp_path: Path, write_losses: Write, caplog: pytest.LogCaptureFixture
) -> None:
    client.hangs.clear()
    write_losses(tmp_path, 1000)
    for step in range(1, 1001):
        run.update(step)
    run.tag("a", "b")
    assert client.batches == []
    client.down = True
    client.hangs.set()
    wait_for(lambda: run._failures)
    run.close("FINISHED")
    assert client.batches == []
    assert "detection sync" in caplog.messages[-1]


def test_a_real_client_without_a_server_delays_nothing(
    client: Client, closed_port: int, tmp_path: Path, write_losses: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "CLOSE_TIMEOUT_S", 60.0)
    real = import_mlflow().MlflowClient(tracking_uri=f"http://127.0.0.1:{closed_port}")
    run = MlflowRun(lambda: (real, RUN_ID), (real, RUN_ID), tmp_path)
    write_losses(tmp_path, 200)
    run.update(200)
    run.close("KILLED")
    assert run._failures


def test_a_server_that_starts_late_gets_everything(client: Client, tmp_path: Path, write_losses: Write) -> None:
    calls = []

    def opening() -> OpenRun:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return client, RUN_ID

    late = MlflowRun(opening, None, tmp_path)
    assert late.id is None
    write_losses(tmp_path, 30)
    late.update(30)
    wait_for(lambda: late.id)
    late.close("FINISHED")
    assert client.steps() == list(range(1, 31))
    assert client.status == "FINISHED"


def test_a_resumed_training_repeats_no_point(client: Client, tmp_path: Path, write_losses: Write) -> None:
    for last in (7, 10):
        write_losses(tmp_path, last)
        run = MlflowRun(lambda: pytest.fail("it is open"), (client, RUN_ID), tmp_path)
        run.update(last)
        run.close("KILLED")
    assert client.steps() == list(range(1, 11))


def test_a_second_close_changes_nothing(run: MlflowRun, client: Client) -> None:
    run.close("KILLED")
    run.close("FINISHED")
    assert client.status == "KILLED"


def test_the_run_that_replaces_a_deleted_one_gets_everything(
    client: Client, tmp_path: Path, write_losses: Write
) -> None:
    """Another clone has created a run for the same training, and ours was deleted as the younger one."""
    client.deleted = {RUN_ID}
    run = MlflowRun(lambda: (client, "1" * 32), (client, RUN_ID), tmp_path)
    write_losses(tmp_path, 10)
    run.update(10)
    run.close("FINISHED")
    assert run.id == "1" * 32
    assert client.steps() == list(range(1, 11))


def test_a_run_whose_files_fail_has_its_curves_and_ends(
    client: Client, tmp_path: Path, write_losses: Write, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(client: Any, run_id: str, artifacts: Any) -> None:
        raise ConnectionError("the store of files is down")

    run = MlflowRun(lambda: pytest.fail("it is open"), (client, RUN_ID), tmp_path)
    write_losses(tmp_path, 10)
    run.update(10)
    run.transfer(fails)
    run.close("FINISHED")
    assert client.steps() == list(range(1, 11))
    assert client.status == "FINISHED"
    assert "detection sync" in caplog.text


def test_no_run_accepts_everything() -> None:
    with NoRun() as nothing:
        nothing.update(1)
        nothing.artifact(Path("nowhere"), "x")
        nothing.transfer(lambda client, run_id, artifacts: None)
        nothing.tag("a", "b")
        assert nothing.id is None


def test_a_missing_file_is_a_warning(run: MlflowRun, caplog: pytest.LogCaptureFixture) -> None:
    run.artifact(Path("/nowhere/figure.png"), "samples")
    assert "/nowhere/figure.png" in caplog.messages[0]


def test_system_metrics_are_sampled_by_the_thread(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "SystemMetrics", SystemMetrics)
    monkeypatch.setattr(run_module, "SAMPLE_INTERVAL_S", 0.01)
    for _ in range(2):
        before = len(client.steps("system/cpu_utilization_percentage"))
        run = MlflowRun(lambda: pytest.fail("it is open"), (client, RUN_ID), tmp_path)
        wait_for(partial(lambda at: len(client.steps("system/cpu_utilization_percentage")) > at + 1, before))
        run.close("FINISHED")
    steps = client.steps("system/cpu_utilization_percentage")
    assert steps == list(range(len(steps))), "a resumed run continues the numbering"


class Nvml:
    """A driver with two GPUs, of which the second does not report its power, as slices of a GPU do not."""

    class NVMLError(Exception):
        pass

    lost = False

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if self.lost:
            raise OSError("GPU is lost")
        return SimpleNamespace(used=20e9, total=80e9)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=90 + handle)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle:
            raise self.NVMLError("Not Supported")
        return 350_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000


def test_gpu_metrics_with_a_driver(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import_mlflow()
    from mlflow.system_metrics.metrics import gpu_monitor

    driver = Nvml()
    monkeypatch.setattr(gpu_monitor, "pynvml", driver, raising=False)
    monkeypatch.setattr(run_module, "SAMPLE_INTERVAL_S", 0.0)
    metrics = SystemMetrics({})
    values = {name: value for name, value, _, step in metrics.sample() if "gpu" in name and step == 0}
    assert values == {
        "system/gpu_0_memory_usage_percentage": 25.0,
        "system/gpu_0_memory_usage_megabytes": 20_000.0,
        "system/gpu_0_utilization_percentage": 90.0,
        "system/gpu_0_power_usage_watts": 350.0,
        "system/gpu_0_power_usage_percentage": 50.0,
        "system/gpu_1_memory_usage_percentage": 25.0,
        "system/gpu_1_memory_usage_megabytes": 20_000.0,
        "system/gpu_1_utilization_percentage": 91.0,
    }
    assert not caplog.messages, "what a GPU does not report is not repeated at every sample"
    driver.lost = True
    for _ in range(3):
        names = [name for name, *_ in metrics.sample()]
        assert "system/cpu_utilization_percentage" in names
        assert not any("gpu" in name for name in names)
    (warning,) = caplog.messages
    assert "GPU is lost" in warning


def test_a_driver_that_does_not_answer_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from mlflow.system_metrics.metrics import gpu_monitor

    def mismatch() -> None:
        raise Nvml.NVMLError("Driver/library version mismatch")

    driver = Nvml()
    monkeypatch.setattr(driver, "nvmlInit", mismatch)
    monkeypatch.setattr(gpu_monitor, "pynvml", driver, raising=False)
    monkeypatch.setattr(run_module, "NVIDIA_DEVICE", tmp_path)
    SystemMetrics({})
    assert "version mismatch" in caplog.text
