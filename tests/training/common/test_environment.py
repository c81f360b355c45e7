"""`train.determinism`, and the record of machine, versions and code."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.errors import ParamsError
from detection.signals import StopSignals
from detection.tracking.run import NoRun
from detection.training.common.checkpoint import STATE_FILE
from detection.training.common.environment import code_diff, determinism, write_environment
from detection.training.loop import TrainingJob, fit


def test_bitwise_resumes_to_the_same_weights_with_the_threads_of_the_first_process(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, interrupt: bool = False) -> TrainingJob:
        job: TrainingJob = make_job(name, determinism="bitwise", validate_every=100)
        with determinism("bitwise"), job.checkpoints.locked(), StopSignals() as stop:
            assert torch.are_deterministic_algorithms_enabled()
            stop.signal = 15 if interrupt else None
            fit(job, NoRun(), stop)
        return job

    torch.set_num_threads(2)
    first = train("first")
    with pytest.raises(SystemExit):
        train("second", interrupt=True)
    torch.set_num_threads(1)
    second = train("second")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    one, two = (job.checkpoints.load(STATE_FILE) for job in (first, second))
    assert one is not None
    assert two is not None
    assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
    assert not torch.are_deterministic_algorithms_enabled()


def test_bitwise_names_an_operation_without_a_deterministic_implementation() -> None:
    refused = pytest.raises(ParamsError, match="put_")
    with refused, determinism("bitwise"):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    with determinism("seeded"):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="something else"), determinism("bitwise"):
        raise RuntimeError("something else")


def test_the_environment_names_versions_device_threads_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "detection").mkdir()
    (tmp_path / "detection/a.py").write_text("x = 1\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "one")):
        subprocess.run(["git", *arguments], check=True)
    assert code_diff() == ""
    (tmp_path / "detection/a.py").write_text("x = 2\n")
    (tmp_path / "detection/new.py").write_text("y = 3\n")
    environment = write_environment(tmp_path / "r", "abc", torch.device("cpu"), torch.bfloat16, "seeded")
    assert environment == json.loads((tmp_path / "r/environment.json").read_text())
    assert environment["torch"] == torch.__version__.split("+")[0] or environment["torch"] == torch.__version__
    assert (environment["training_id"], environment["precision"], environment["threads"]) == (
        "abc",
        "bfloat16",
        str(torch.get_num_threads()),
    )
    assert environment.keys() >= {"device", "system", "python", "torchvision", "numpy", "mlflow", "dvc", "commit"}
    diff = (tmp_path / "r/code.diff").read_text()
    assert "-x = 1\n+x = 2\n" in diff
    assert "+y = 3\n" in diff
