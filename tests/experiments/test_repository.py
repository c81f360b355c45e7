"""A project below the root of git, a detached HEAD, scores of another detector, invalid YAML."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from detection.errors import DataError
from detection.experiments.find import Experiment
from detection.experiments.repository import EXEC_BASELINE, RUN_JSONS, Repository, Workspace, read_params
from detection.files import DETECTOR, EVALUATED_JSON
from detection.pipeline import locked_code

LOCK = """
stages:
  train: {{outs: [{{path: models/detector.pt, md5: aa}}]}}
  evaluate: {{deps: [{{path: models/detector.pt, md5: {seen}}}]}}
"""


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a folder of a larger repository, as `dvc init --subdir` creates it."""
    folder = tmp_path / "whole repository" / "part"
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    git("init", "-q", "..")
    return folder


def code_of(files: Workspace) -> object:
    return locked_code(files.read("dvc.lock"))


def git(*args: str) -> None:
    identity = ("-c", "user.name=Tester", "-c", "user.email=tester@localhost")
    subprocess.run(["git", *identity, *args], check=True, capture_output=True)


def test_a_project_below_the_root_of_git_with_a_detached_head(part: Path) -> None:
    assert Repository().head() is None
    assert list(Repository().commits_of("f" * 32)) == [], "no commit yet"
    git("commit", "-qm", "first", "--allow-empty")
    git("checkout", "-q", "--detach")
    run_json = part / RUN_JSONS[0]
    run_json.parent.mkdir(parents=True)
    run_json.write_text(json.dumps({"run_id": "f" * 32}))
    git("add", ".")
    git("commit", "-qm", "second")
    repository = Repository()
    head = repository.head()
    assert head is not None
    assert repository.run_ids(head) == ["f" * 32]
    assert list(repository.commits_of("f" * 32)) == [head]


def test_scores_of_another_detector_are_refused(tmp_path: Path) -> None:
    experiment = Experiment(name="mine", files=Workspace(tmp_path))
    experiment.check_scored()  # no outputs yet
    (tmp_path / "dvc.lock").write_text(LOCK.format(seen="aa"))
    experiment.check_scored()
    (tmp_path / "dvc.lock").write_text(LOCK.format(seen="bb"))
    with pytest.raises(DataError, match=r"^mine: the detector was trained again .*`dvc repro`"):
        experiment.check_scored()


def test_scores_name_the_detector_that_they_belong_to(tmp_path: Path) -> None:
    """dvc.lock does not tell: `dvc exp save` after `dvc repro train` records old scores beside a new detector."""
    experiment = Experiment(name="mine", files=Workspace(tmp_path))
    (tmp_path / "dvc.lock").write_text(LOCK.format(seen="aa"))
    for path, content in ((EVALUATED_JSON, json.dumps({"detector": md5_of(b"first")})), (DETECTOR, "first")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    experiment.check_scored()
    (tmp_path / DETECTOR).write_text("trained again")
    with pytest.raises(DataError, match=r"^mine: the detector was trained again .*`dvc repro`"):
        experiment.check_scored()


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_a_live_command_in_the_workspace_is_known(part: Path) -> None:
    repository, lock = Repository(), part / ".dvc/tmp/rwlock"
    assert repository.running() is None
    lock.parent.mkdir()
    here, task = str(part / "models/detector.pt"), str(part / ".dvc/tmp/exps/tmp1/models/detector.pt")
    for path, pid, running in ((here, os.getpid(), True), (here, 2**22 + 1, False), (task, os.getpid(), False)):
        lock.write_text(json.dumps({"write": {path: {"pid": pid, "cmd": "dvc exp run"}}, "read": {}}))
        assert (repository.running() == "dvc exp run") == running


def test_a_killed_experiment_leaves_head_off_its_branch(part: Path) -> None:
    git("commit", "-qm", "first", "--allow-empty")
    git("branch", "-M", "mine")
    git("update-ref", EXEC_BASELINE, "HEAD")
    assert Repository().lost_branch() is None
    git("checkout", "-q", "--detach")
    assert Repository().lost_branch() == "mine"
    git("update-ref", "-d", EXEC_BASELINE)
    assert Repository().lost_branch() is None, "the user's own checkout"


@pytest.mark.parametrize(("path", "read"), [("dvc.lock", code_of), ("params.yaml", read_params)])
def test_merge_conflicts_are_an_error_of_one_line(
    tmp_path: Path, path: str, read: Callable[[Workspace], object]
) -> None:
    (tmp_path / path).write_text("<<<<<<< HEAD\nmodel: a\n=======\nmodel: b\n>>>>>>> other\n")
    with pytest.raises(DataError, match=rf"^{path} is not valid YAML .*merge conflicts"):
        read(Workspace(tmp_path))
