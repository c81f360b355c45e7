"""`train.determinism`, and what is recorded of the machine, the versions and the code."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.errors import ParamsError
from detection.tracking.run import NoRun
from detection.training.environment import code_diff, determinism, write_environment
from detection.training.loop import STATE, TrainingJob, fit
from detection.training.signals import StopSignals


def test_bitwise_gives_the_same_weights_twice_whatever_threads_the_second_life_finds(
    make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def life(name: str, stop: bool = False) -> TrainingJob:
        job: TrainingJob = make_job(name, determinism="bitwise", validate_every=100)
        with determinism("bitwise"), job.checkpoints.held(), StopSignals() as interrupts:
            assert torch.are_deterministic_algorithms_enabled()
            interrupts.signal = 15 if stop else None
            fit(job, NoRun(), interrupts)
        return job

    torch.set_num_threads(2)
    first = life("first")
    with pytest.raises(SystemExit):
        life("second", stop=True)
    torch.set_num_threads(1)
    second = life("second")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    one, two = (job.checkpoints.load(STATE) for job in (first, second))
    assert one is not None
    assert two is not None
    assert all(torch.equal(value, two["model"][key]) for key, value in one["model"].items())
    assert not torch.are_deterministic_algorithms_enabled()


def test_bitwise_refuses_by_name_what_cannot_be_repeated() -> None:
    refused = pytest.raises(ParamsError, match=r"bitwise is not possible here: put_ has no deterministic")
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
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "one")):
        subprocess.run(["git", *words], check=True)
    assert code_diff() == ""
    (tmp_path / "detection/a.py").write_text("x = 2\n")
    (tmp_path / "detection/new.py").write_text("y = 3\n")
    said = write_environment(tmp_path / "r", "abc", torch.device("cpu"), torch.bfloat16, "seeded")
    assert said == json.loads((tmp_path / "r/environment.json").read_text())
    assert said["torch"] == torch.__version__.split("+")[0] or said["torch"] == torch.__version__
    assert (said["training_id"], said["precision"], said["threads"]) == (
        "abc",
        "bfloat16",
        str(torch.get_num_threads()),
    )
    assert said.keys() >= {"device", "system", "python", "torchvision", "numpy", "mlflow", "dvc", "commit"}
    diff = (tmp_path / "r/code.diff").read_text()
    assert "-x = 1\n+x = 2\n" in diff
    assert "+y = 3\n" in diff
