"""`detection search`: the space, the trials as DVC experiments, kills, and several workers on one storage."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from detection.errors import DataError, ParamsError
from detection.experiments import search as module
from detection.experiments.repository import Repository
from detection.experiments.search import Search, open_study, storage_url
from detection.experiments.search_page import write_search_page
from detection.experiments.search_parent import ParentRun
from detection.experiments.search_space import read
from tests.experiment_projects import ROOT

optuna = pytest.importorskip("optuna")
LR = "presets.small.optimizer.lr"
SPACE = f"""
space:
  {LR}: {{low: 1e-4, high: 1e-2, log: true}}
  models.fasterrcnn_resnet18.fpn_channels: {{choices: [16, 32]}}
trials: 6
"""
PIPELINE = """
stages:
  train:
    cmd: exec python -m stages.train
    deps: [stages/train.py]
    params: [presets, models]
    outs: [reports/train]
    metrics: [reports/train_run.json: {cache: false}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Repository whose training takes two seconds."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "DETECTION_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DETECTION_TRACKING", "off")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    root = tmp_path / "project"
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore", ".dvcignore", "params.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "stages").mkdir()
    (root / "stages/__init__.py").touch()  # else Python prefers the package in PYTHONPATH
    shutil.copy(ROOT / "tests/experiments/searched_stage.py", root / "stages/train.py")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "space.yaml").write_text(SPACE)
    for line in ("init -q", "config user.name Tester", "config user.email t@localhost", "add .", "commit -qm clone"):
        subprocess.run(["git", *line.split()], cwd=root, check=True)
    monkeypatch.chdir(root)
    return root


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "detection.cli", "search", "space.yaml", *words]


def starts(root: Path) -> list[str]:
    path = root / "starts.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("optimizer.lr", "optimizer.lrr", "unknown key; did you mean 'lr'"),
        ("fasterrcnn_resnet18", "fasterrcnn_resnet81", "did you mean 'fasterrcnn_resnet18'"),
        ("low: 1e-4, high: 1e-2, log: true", "low: -1, high: 1", "must be above 0, not -1"),
        ("low: 1e-4", "low: 1", "must be above low"),
        ("[16, 32]", "[16, wide]", "Expected int, got str"),
        ("presets.small.optimizer", "models.fasterrcnn_resnet18.optimizer", "changes nothing"),
        ("fasterrcnn_resnet18.fpn", "retinanet.fpn", "changes nothing"),
        ("trials", "trails", "did you mean 'trials'"),
        ("trials: 6", "sampler: grid", "a grid needs choices, or a step"),
        ("trials: 6", "objective: test/AP", "not possible"),
    ],
)
def test_typo_or_forbidden_value_stops_before_anything_starts(
    folder: Path, before: str, after: str, message: str
) -> None:
    (folder / "space.yaml").write_text(SPACE.replace(before, after))
    with pytest.raises(ParamsError, match=message):
        read(folder / "space.yaml")
    assert not (folder / ".search").exists()


def test_study_is_that_of_the_space_and_of_all_other_params(folder: Path) -> None:
    space = read(folder / "space.yaml")
    name = space.study_name(folder)
    (folder / "space.yaml").write_text(SPACE.replace("trials: 6", "trials: 60"))
    assert read(folder / "space.yaml").study_name(folder) == name, "a larger budget continues the study"
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("lr: 1.2e-3", "lr: 5e-3"))
    assert read(folder / "space.yaml").study_name(folder) == name, "the best values may be applied to params.yaml"
    (folder / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    assert read(folder / "space.yaml").study_name(folder) != name


class StubProcess:
    """Training that ends at once with a curve."""

    finished, command = True, "dvc exp run"
    died: Any = None
    taken: list[str] = []  # noqa: RUF012 - of all workers
    curves: dict[str, dict[int, float]] = {}  # noqa: RUF012

    def __init__(self, root: Path, name: str, overrides: list[str], log: Path) -> None:
        self.taken.append(name)
        if self.died == len(self.taken):
            raise KeyboardInterrupt
        lr = float(overrides[0].partition("=")[2])
        self.curves[name] = {1: lr, 2: lr * 2}

    def running(self) -> bool:
        return False


class StubSearch(Search):
    def _result(self, trial: Any) -> bool:
        curve = StubProcess.curves.get(trial.user_attrs["experiment"])
        if curve is None:
            return False
        self._report(trial, curve)
        self._tell(trial, max(curve.values()), "")
        return True


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubProcess]:
    monkeypatch.setattr(module, "TrialProcess", StubProcess)
    StubProcess.died, StubProcess.taken, StubProcess.curves = None, [], {}
    return StubProcess


def stub_search(folder: Path, name: str = "study") -> StubSearch:
    space = read(folder / "space.yaml")
    study = open_study(space, name, storage_url(None))
    return StubSearch(space, study, Repository(), ParentRun(space, name))


def completed(folder: Path, name: str) -> list[Any]:
    study = optuna.load_study(study_name=name, storage=storage_url(None))
    return [one for one in study.get_trials() if one.state.name == "COMPLETE"]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_interrupted_search_proposes_what_an_uninterrupted_one_does(
    folder: Path, stub: type[StubProcess], sampler: str
) -> None:
    (folder / "space.yaml").write_text(f"{SPACE}sampler: {sampler}\n".replace("trials: 6", "trials: 12"))
    stub_search(folder, "whole").run(1)
    stub.taken, stub.curves = [], {}
    for died in (4, 9):
        stub.died = died
        with pytest.raises(KeyboardInterrupt):
            stub_search(folder, "killed")._work()
    stub.died = None
    stub_search(folder, "killed").run(1)
    whole, killed = completed(folder, "whole"), completed(folder, "killed")
    assert [one.params for one in killed] == [one.params for one in whole]
    assert len(killed) == 12
    assert [n for n in Counter(stub.taken).values() if n > 1] == [2, 2], "only the interrupted ones start twice"


def test_workers_on_one_storage_take_no_trial_twice(folder: Path, stub: type[StubProcess]) -> None:
    (folder / "space.yaml").write_text(SPACE.replace("trials: 6", "trials: 14"))
    threads = [threading.Thread(target=stub_search(folder).run, args=(2,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stub.taken) == len(set(stub.taken)) == 14
    assert len(completed(folder, "study")) == 14


def test_grid_runs_each_point_once(folder: Path, stub: type[StubProcess]) -> None:
    grid = SPACE.replace("low: 1e-4, high: 1e-2, log: true", "choices: [1e-4, 1e-3]").replace("trials: 6", "")
    (folder / "space.yaml").write_text(f"{grid}\nsampler: grid\n")
    searched = stub_search(folder)
    searched.run(1)
    assert len({str(one.params) for one in completed(folder, "study")}) == len(stub.taken) == 4
    page = write_search_page(searched.space, searched.study, ["A verdict."]).read_text()
    assert "A verdict." in page
    assert page.count("<td>finished</td>") == 4


def test_changed_params_stop_a_search(folder: Path, stub: type[StubProcess]) -> None:
    searched = stub_search(folder)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(ParamsError, match="changed while the search ran"):
        searched.run(1)


def test_password_of_a_storage_is_in_no_message(folder: Path) -> None:
    url = storage_url("postgresql://me:secret@localhost:1/studies")
    with pytest.raises(DataError, match="cannot be opened") as error:
        open_study(read(folder / "space.yaml"), "study", url)
    assert "secret" not in str(error.value)


def test_killed_search_and_killed_training_are_resumed(folder: Path) -> None:
    (folder / "space.yaml").write_text(SPACE.replace("trials: 6", "trials: 3\npruner:"))
    (folder / "slow").write_text("60")
    first = subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait(lambda: list((folder / ".checkpoints").glob("*")) and _checkpoint(folder) == 3)
    first.kill()
    first.wait()
    _wait(lambda: not _trainings(folder), "the training outlives the search")
    (folder / "slow").unlink()
    assert len(starts(folder)) == 1

    searching = subprocess.Popen(command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _wait(lambda: len(starts(folder)) == 3 and _trainings(folder))
    os.kill(_trainings(folder)[0], signal.SIGKILL)
    output, _ = searching.communicate(timeout=900)
    assert searching.returncode == 0, output
    names = [line.split()[0] for line in starts(folder)]
    assert starts(folder)[1] == f"{names[0]} 3", "resumed at its checkpoint"
    assert sorted(Counter(names).values()) == [1, 2, 2]
    assert "was killed; it is started again" in output

    again = subprocess.run(command(), capture_output=True, text=True, check=True)
    assert len(starts(folder)) == 5, "finished trials never run again"
    assert "3 trials by tpe, 3 finished" in again.stdout


def test_bad_trial_is_pruned_and_can_be_resumed(folder: Path) -> None:
    (folder / "space.yaml").write_text(
        f"space: {{{LR}: {{choices: [1e-3, 1.1e-3, 1e-4, 5e-3]}}}}\nsampler: grid\npruner: {{startup_trials: 1}}\n"
    )
    (folder / "slow").write_text("3")
    done = subprocess.run(command("--no-apply"), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    study = optuna.load_study(study_name=done.stdout.split(": 4 trials")[0].split()[-1], storage=storage_url(None))
    pruned = [one for one in study.get_trials() if one.state.name == "PRUNED"]
    assert pruned
    assert "below the median" in pruned[0].user_attrs["reason"]
    name = pruned[0].user_attrs["experiment"]
    assert Repository().experiment(name) is None
    (folder / "slow").unlink()
    subprocess.run(pruned[0].user_attrs["command"].split(), check=True, capture_output=True)
    assert Repository().experiment(name) is not None
    assert int(starts(folder)[-1].split()[1]) >= 2, "its checkpoint stays"


def _checkpoint(root: Path) -> int:
    return int(next((root / ".checkpoints").glob("*")).read_text() or 0)


def _trainings(root: Path) -> list[int]:
    import psutil

    found = []
    for one in psutil.process_iter(["cmdline", "cwd"]):
        if "stages.train" in (one.info["cmdline"] or []) and str(one.info["cwd"]).startswith(str(root)):
            found.append(one.pid)
    return found


def _wait(condition: Any, message: str = "timeout") -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until, message
        time.sleep(0.1)
